"""The networks a run measures, with random weights at their real size, and how anything in it is timed.

Speed does not know what weights mean, so nothing is read from the network or from disk.

Legend: B places, T frames, C channels; h, w latent.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.catalog import ModelEntry
from model.checkpoint import Checkpoint, scheduler_for
from model.denoiser import DenoiserInputs
from model.encoders import CLIP_NORMALISATION, build_conditioners, clip_image_processor
from model.params import Params
from model.presets import Preset, preset
from model.shapes import LatentShape
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae

TASK = task("image-to-video")


@dataclass(frozen=True)
class Timed:
    """Seconds of each repetition after the warm-up, and the most memory the device held meanwhile."""

    seconds: list[float]
    peak_gib: float | None

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {"median_s": self.median, "seconds": self.seconds, "peak_gib": self.peak_gib}


class Bench:
    """One size on one device.

    Args:
        size: a preset's name: svd-xt, svd or tiny.
        steps: of a guided generation.
        repeats: timed repetitions of a short piece; whole generations take fewer.
        rehearsal: whether the program is run and its figures mean nothing: networks stay eager where they would be
            compiled or recorded, and nothing is warmed up or repeated.
    """

    def __init__(
        self, size: str, device: torch.device, dtype: torch.dtype, steps: int, repeats: int, *, rehearsal: bool = False
    ) -> None:
        self.preset: Preset = preset(size)
        self.device, self.dtype, self.steps, self.repeats = device, dtype, steps, repeats
        self.rehearsal = rehearsal

    @property
    def latent(self) -> LatentShape:
        """A clip in latent space."""
        return LatentShape(
            self.preset.num_frames,
            self.preset.vae.latent_channels,
            self.preset.height // 8,
            self.preset.width // 8,
        )

    @property
    def still(self) -> Image.Image:
        """A picture of the clip's size, always the same."""
        random = np.random.default_rng(0)
        pixels = random.integers(0, 256, (self.preset.height // 8, self.preset.width // 8, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((self.preset.width, self.preset.height), Image.Resampling.BICUBIC)

    @cached_property
    def plain(self) -> Checkpoint:
        """The networks as diffusers has them, with their weights."""
        torch.manual_seed(0)
        unet = build_unet(self.preset, TASK, device=self.device)
        for name, weight in unet.named_parameters():
            if name.endswith("mix_factor"):
                weight.data.normal_()  # fresh ones are all alike
        vae = build_vae(self.preset, device=self.device)
        with torch.device(self.device):
            conditioners = build_conditioners(self.preset, TASK)
        parts: tuple[Any, ...] = (unet, vae, conditioners.network)  # type: ignore[union-attr]
        for part in parts:
            part.eval().requires_grad_(False).to(self.device, self.dtype)
        return Checkpoint(self.entry, unet, vae, conditioners, self.preset.noise)

    def ours(self, frames: int | None = None) -> Checkpoint:
        """A copy, to be rewritten."""
        plain = self.plain
        entry = plain.entry if frames is None else replace(plain.entry, num_frames=(frames,))
        return replace(plain, entry=entry, unet=copy.deepcopy(plain.unet), vae=copy.deepcopy(plain.vae))

    @property
    def entry(self) -> ModelEntry:
        """What a folder of these networks would say of itself."""
        size = self.preset
        defaults = {
            "fps": 7,
            "motion_bucket_id": 127,
            "noise_aug_strength": 0.02,
            "min_guidance_scale": 1.0,
            "max_guidance_scale": 3.0,
            "num_inference_steps": self.steps,
            "solver": "euler",
            "schedule": "karras",
            "decode_chunk_size": 8,
            "resize_mode": "crop",
        }
        unit = 8 * 2 ** (len(size.unet.channels) - 1)
        return ModelEntry(
            size.name, Path(size.name), TASK, "random", (size.num_frames,), size.height, size.width, unit, defaults
        )

    def params(self, **fields: object) -> Params:
        """Settings of a generation."""
        return self.entry.resolve(dict(fields), seed=7)

    def pipeline(self, checkpoint: Checkpoint) -> Any:
        """diffusers' pipeline over the networks."""
        from diffusers import StableVideoDiffusionPipeline

        pipeline = StableVideoDiffusionPipeline(
            vae=checkpoint.vae,
            image_encoder=checkpoint.conditioners.network,  # type: ignore[union-attr]
            unet=checkpoint.unet,
            scheduler=scheduler_for(checkpoint.noise),
            feature_extractor=clip_image_processor(*CLIP_NORMALISATION),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def inputs(self, batch_size: int, frames: int | None = None) -> DenoiserInputs:
        """Inputs of a Denoiser."""
        shape, size = self.latent, self.preset.unet
        count = frames or shape.num_frames
        g = torch.Generator().manual_seed(batch_size)
        clip = (batch_size, count, shape.channels, shape.height, shape.width)
        inputs = DenoiserInputs(
            torch.randn(clip, generator=g),
            torch.linspace(-1.0, 1.5, batch_size),
            torch.randn(batch_size, 1, size.context_dim, generator=g),
            torch.randn(clip, generator=g),
            torch.tensor([[6.0, 127.0, 0.02]]).expand(batch_size, -1).contiguous(),
        )
        return inputs.to(self.device)

    def warm_up(self, work: Callable[[], object]) -> None:
        """What a shorter generation before the timed ones is for; nothing at a rehearsal."""
        if not self.rehearsal:
            work()

    def timed(self, work: Callable[[], object], *, repeats: int | None = None, warm_ups: int = 2) -> Timed:
        """Run it, first for the warm-up, then against the clock."""
        on_gpu = self.device.type == "cuda"
        if self.rehearsal:
            repeats, warm_ups = 1, 0
        for _ in range(warm_ups):
            work()
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats or self.repeats):
            started = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return Timed(seconds, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None)


def relieve() -> None:
    """Give back what the last part held."""
    import gc

    gc.collect()
    if "torch._dynamo" in sys.modules:  # seconds to import, and nothing was compiled without it
        torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
