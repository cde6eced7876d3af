"""Clips made for measuring: sampled by model.sampling, kept on disk, so that an interrupted evaluation goes on.

A work folder belongs to one checkpoint version, step count and size; a clip in it is not made again.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.backends.registry import make_denoiser
from model.catalog import ModelEntry
from model.checkpoint import Checkpoint, load
from model.conditioning import picture_to_pixels
from model.denoiser import Denoiser
from model.media.end_frames import restore_end_frames
from model.media.video import Frames
from model.optimized.rewrites import rewrite_exactly
from model.params import Params
from model.sampling.sampler import advance, prepare_row
from model.vae import decode, decode_clip, encode_mode, to_uint8
from training.config import ProgressCallback


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One clip to make.

    Args:
        name: what it is kept under; letters, digits, `-` and `/`.
        picture: [H, W, 3], of the checkpoint's size; None where the task takes none.
        seed_from: clips of one `seed_from` start from the same noise.
        last: the second picture, where the task takes two.
        params: settings of the task besides, such as `prompt` and `elevation`.
    """

    name: str
    picture: Frames | None
    fps: int
    bucket: int
    seed_from: str
    last: Frames | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The seed its noise comes from."""
        return zlib.crc32(self.seed_from.encode())

    @property
    def pictures(self) -> list[Image.Image]:
        """What the request brings."""
        return [Image.fromarray(one) for one in (self.picture, self.last) if one is not None]


class ClipMaker:
    """Makes clips with one checkpoint, `batch` at a time, and keeps them in `folder`.

    The checkpoint is loaded when the first clip is missing.
    """

    def __init__(self, entry: ModelEntry, folder: Path, *, steps: int, batch: int = 1, device: str = "cpu") -> None:
        self._entry = entry
        held = f"-held-{entry.frame_noise:g}" if entry.task.restores_ends else ""
        self._folder = folder / f"{entry.name}-{entry.version}-{steps}-steps{held}"
        self._steps = steps
        self._batch = batch
        self._device = device

    def generated(self, requests: Sequence[GenerationRequest], what: str, report: ProgressCallback) -> list[Frames]:
        """The clips, [T, H, W, 3] each, in the order asked for."""
        missing = [one for one in requests if not self._path(one.name).exists()]
        done = len(requests) - len(missing)
        for group in _groups(missing, self._batch):
            report(what, done, len(requests))
            for one, clip in zip(group, self._sample(group), strict=True):
                self._keep(one.name, clip)
            done += len(group)
        report(what, done, len(requests))
        return [np.load(self._path(one.name)) for one in requests]

    def reconstructed(self, clips: dict[str, Frames], what: str, report: ProgressCallback) -> list[Frames]:
        """Each clip through the autoencoder and back."""
        for done, (name, frames) in enumerate(clips.items()):
            report(what, done, len(clips))
            if not self._path(f"autoencoder/{name}").exists():
                self._keep(f"autoencoder/{name}", self._through_autoencoder(frames))
        report(what, len(clips), len(clips))
        return [np.load(self._path(f"autoencoder/{name}")) for name in clips]

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, loaded when first asked for."""
        checkpoint = load(self._entry, device=self._device)
        rewrite_exactly(checkpoint.vae)
        return checkpoint

    @cached_property
    def denoiser(self) -> Denoiser:
        """Its network."""
        return make_denoiser("torch", self.checkpoint)

    def _sample(self, group: Sequence[GenerationRequest]) -> list[Frames]:
        group_params = [self.params_of(one) for one in group]
        requested = zip(group_params, group, strict=True)
        rows = [prepare_row(self.checkpoint, params, one.pictures) for params, one in requested]
        while not rows[0].done:
            rows = advance(self.denoiser, rows)
        vae = self.checkpoint.vae
        decoded = zip(rows, group_params, strict=True)
        clips = [decode(vae, row.latents, params.decode_chunk_size) for row, params in decoded]
        if not self._entry.task.restores_ends:
            return clips
        ends = [[np.asarray(picture) for picture in one.pictures] for one in group]
        noise = self._entry.frame_noise
        return [restore_end_frames(frames, pair, noise) for frames, pair in zip(clips, ends, strict=True)]

    def params_of(self, one: GenerationRequest) -> Params:
        """Its complete settings."""
        fields = {"fps": one.fps, "motion_bucket_id": one.bucket, "num_inference_steps": self._steps, **one.params}
        return self._entry.resolve(fields, one.seed)

    def _through_autoencoder(self, frames: Frames) -> Frames:
        vae = self.checkpoint.vae
        pixels = torch.stack([picture_to_pixels(Image.fromarray(frame)) for frame in frames])
        with torch.inference_mode():
            latents = encode_mode(vae, pixels.to(vae.device, vae.dtype))
            chunk = int(self._entry.defaults["decode_chunk_size"])
            return to_uint8(decode_clip(vae, latents, chunk).float())

    def subfolder(self, name: str) -> Path:
        """A folder of its own for what else an evaluation keeps."""
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _keep(self, name: str, clip: Frames) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as stream:
            np.save(stream, clip)
        partial.replace(path)


def _groups(requests: list[GenerationRequest], size: int) -> list[list[GenerationRequest]]:
    return [requests[first : first + size] for first in range(0, len(requests), size)]
