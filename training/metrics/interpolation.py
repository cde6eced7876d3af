"""Frame interpolation's figures: the frames between, against blending the two ends.

Held-out film clips of the checkpoint's length; both ends are given, with the clip's own frame rate and measured bucket.

Legend: N clips, T frames, H, W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.catalog import ModelEntry
from training.metrics.baselines import blend
from training.metrics.frechet import interval, resamples
from training.metrics.generate import ClipMaker, Report, Wanted
from training.metrics.image import psnr
from training.metrics.inputs import RealClip, real_clips
from training.metrics.losses import loss_figure
from training.motion import MotionMap

Figure = dict[str, Any]

RESAMPLES = 1000
CLIPS = 64
PROTOCOL = {
    "between_psnr_db": (
        "Mean PSNR of the frames between the given ends, model against linear blending of them; `fast` is the clips "
        "whose measured flow is above the median. Interval: 95% of 1000 bootstrap resamples over shots of the mean "
        "difference (model - blending). `autoencoder` is the real frames through the autoencoder: the best to be had."
    ),
}


def interpolation_figures(
    entry: ModelEntry, maker: ClipMaker, data: Path, limit: int | None, scale: MotionMap, report: Report
) -> Figure:
    """All figures of a frame-interpolation checkpoint."""
    real = real_clips(data, entry.num_frames[0], entry.height, entry.width, limit or CLIPS, scale)
    wanted = [_between(clip) for clip in real]
    made = maker.generated(wanted, "sampling between ends", report)
    rebuilt = maker.reconstructed({clip.name: clip.frames for clip in real}, "reconstructing clips", report)
    return {
        "between_psnr_db": between(real, made, rebuilt),
        "validation_loss": loss_figure(maker, wanted, [clip.frames for clip in real], report),
    }


def _between(clip: RealClip) -> Wanted:
    name = f"between/{clip.name}"
    return Wanted(name, clip.frames[0], round(clip.fps), clip.bucket, clip.name, last=clip.frames[-1])


def between(real: list[RealClip], made: list[Any], rebuilt: list[Any]) -> Figure:
    """PSNR of the frames between, over all clips and over the faster half."""
    sides = {
        "model": np.array([psnr(clip.frames[1:-1], one[1:-1]) for clip, one in zip(real, made, strict=True)]),
        "blending": np.array([psnr(clip.frames[1:-1], blend(clip.frames)[1:-1]) for clip in real]),
        "autoencoder": np.array([psnr(clip.frames[1:-1], one[1:-1]) for clip, one in zip(real, rebuilt, strict=True)]),
    }
    flows = np.array([clip.flow for clip in real])
    fast = flows > np.median(flows)
    figure: Figure = {name: float(values.mean()) for name, values in sides.items()} | {"clips": len(real)}
    if fast.any():
        figure |= {f"{name}_fast": float(values[fast].mean()) for name, values in sides.items()}
        apart = (sides["model"] - sides["blending"])[fast]
        drawn = resamples([clip.shot for clip, chosen in zip(real, fast, strict=True) if chosen], RESAMPLES, seed=0)
        figure["model_minus_blending_fast_interval"] = interval([float(apart[rows].mean()) for rows in drawn])
        figure["beats_blending_fast"] = bool(apart.mean() > 0)
    return figure
