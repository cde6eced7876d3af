"""diffusers' pipeline on the same checkpoint and settings: what our figures stand beside."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from model.media.video import encode_video


class Pipeline:
    """StableVideoDiffusionPipeline as its users run it, one request at a time.

    Args:
        folder: a checkpoint in diffusers' format.
        still: the picture of every request, of the clip's size.
    """

    def __init__(self, folder: Path, still: Image.Image, device: str, dtype: torch.dtype = torch.float32) -> None:
        from diffusers import StableVideoDiffusionPipeline

        self._pipeline: Any = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self.still = still

    def video(self, params: Any) -> tuple[np.ndarray, float]:
        """Frames (T H W 3, uint8), encoded as mp4 too, and when the first step had been made (`time.perf_counter`)."""
        first: list[float] = []

        def stepped(_pipeline: object, _step: int, _moment: object, kwargs: dict[str, Any]) -> dict[str, Any]:
            first.append(time.perf_counter())
            return kwargs

        pixels = self._call(params, "np", callback_on_step_end=stepped).frames[0]
        frames = np.ascontiguousarray((pixels * 255).round().astype(np.uint8))
        encode_video(frames, params.fps, "mp4")
        return frames, first[0]

    def latents(self, params: Any) -> torch.Tensor:
        """The final latents, T C h w, as float32 on the CPU."""
        latents: torch.Tensor = self._call(params, "latent").frames[0]
        return latents.float().cpu()

    def _call(self, params: Any, output: str, **more: Any) -> Any:
        return self._pipeline(
            self.still,
            height=params.height,
            width=params.width,
            num_frames=params.num_frames,
            num_inference_steps=params.num_inference_steps,
            min_guidance_scale=params.min_guidance_scale,
            max_guidance_scale=params.max_guidance_scale,
            fps=params.fps,
            motion_bucket_id=params.motion_bucket_id,
            noise_aug_strength=params.noise_aug_strength,
            decode_chunk_size=params.decode_chunk_size,
            generator=torch.Generator().manual_seed(params.seed),
            output_type=output,
            **more,
        )
