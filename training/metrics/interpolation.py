"""Frame interpolation's figures: the frames between, against blending the two ends and against RIFE.

Held-out film clips of the checkpoint's length; both ends are given, with the clip's own frame rate and measured bucket.

Legend: N clips, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.catalog import ModelEntry
from model.media.video import Frames
from training.config import ProgressCallback
from training.data.motion_bucket import MotionMap
from training.metrics.baselines import blend
from training.metrics.frechet import interval, resamples
from training.metrics.generate import ClipMaker, GenerationRequest
from training.metrics.image import psnr, ssim
from training.metrics.inputs import EvalSample, RealClip, real_clips
from training.metrics.loss import loss_figure
from training.metrics.rife import rife_between

Figure = dict[str, Any]

RESAMPLES = 1000
CLIPS = 64
BETWEEN = (
    "of the frames between the given ends, model against linear blending of them and against RIFE "
    "(training.metrics.rife); `fast` is the clips whose measured flow is above the median. Interval: 95% of 1000 "
    "bootstrap resamples over shots of the mean difference (model - blending). `autoencoder` is the real frames "
    "through the autoencoder: the best to be had; `blending_through_autoencoder` is what that leaves of the blends."
)
PROTOCOL = {"between_psnr_db": f"Mean PSNR {BETWEEN}", "between_ssim": f"Mean SSIM {BETWEEN}"}
Interpolator = Callable[[Frames], Frames]
"""Makes a clip's frames between its first and its last."""


def interpolation_figures(
    entry: ModelEntry,
    maker: ClipMaker,
    data: Path,
    limit: int | None,
    scale: MotionMap,
    report: ProgressCallback,
    interpolator: Interpolator = rife_between,
) -> tuple[Figure, list[EvalSample]]:
    """All figures of a frame-interpolation checkpoint, and its clips beside what they are compared with.

    Args:
        interpolator: the method besides blending that the model is compared with.
    """
    real = real_clips(data, entry.num_frames[0], entry.height, entry.width, limit or CLIPS, scale)
    requests = [_between(clip) for clip in real]
    generated = maker.generated(requests, "sampling between ends", report)
    blended = {clip.name: blend(clip.frames) for clip in real}
    rebuilt = maker.reconstructed({clip.name: clip.frames for clip in real}, "reconstructing clips", report)
    lossy = {f"blended/{name}": frames for name, frames in blended.items()}
    sides = {
        "model": generated,
        "blending": list(blended.values()),
        "blending_through_autoencoder": maker.reconstructed(lossy, "reconstructing blends", report),
        "rife": [interpolator(clip.frames) for clip in real],
        "autoencoder": rebuilt,
    }
    figures = {
        "between_psnr_db": between(real, sides, psnr),
        "between_ssim": between(real, sides, ssim),
        "validation_loss": loss_figure(maker, requests, [clip.frames for clip in real], report),
    }
    shown = [
        EvalSample(clip.name, clip.frames, {side: clips[k] for side, clips in sides.items()})
        for k, clip in enumerate(real)
    ]
    return figures, shown


def _between(clip: RealClip) -> GenerationRequest:
    name = f"between/{clip.name}"
    return GenerationRequest(name, clip.frames[0], round(clip.fps), clip.bucket, clip.name, last=clip.frames[-1])


def between(
    real: list[RealClip], sides: Mapping[str, Sequence[Frames]], measure: Callable[[Frames, Frames], float]
) -> Figure:
    """A measure of the frames between on each side, over all clips and over the faster half; more is better.

    Args:
        sides: for each of `model`, `blending` and others, a clip for each of `real`.
    """
    values = {
        side: np.array([measure(clip.frames[1:-1], one[1:-1]) for clip, one in zip(real, clips, strict=True)])
        for side, clips in sides.items()
    }
    flows = np.array([clip.flow for clip in real])
    fast = flows > np.median(flows)
    figure: Figure = {side: float(each.mean()) for side, each in values.items()} | {"clips": len(real)}
    if fast.any():
        figure |= {f"{side}_fast": float(each[fast].mean()) for side, each in values.items()}
        apart = (values["model"] - values["blending"])[fast]
        drawn = resamples([clip.shot for clip, chosen in zip(real, fast, strict=True) if chosen], RESAMPLES, seed=0)
        figure["model_minus_blending_fast_interval"] = interval([float(apart[rows].mean()) for rows in drawn])
        figure["beats_blending_fast"] = bool(apart.mean() > 0)
    return figure
