"""The figures of an evaluation, each beside its baselines, from clips that are already made.

Legend: N clips, T frames, H, W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from model.media.video import Frames
from training.config import ProgressCallback
from training.data.motion_bucket import MotionMap, measure_flow
from training.metrics.baselines import ZOOM, slow_zoom, still
from training.metrics.frechet import Projection, frechet_distance, interval, resamples
from training.metrics.image import psnr, sharpness_kept, shrunk_and_back, spearman
from training.metrics.inputs import RealClip
from training.metrics.temporal import flicker, warp_error

Array = np.ndarray[Any, np.dtype[np.float64]]
Features = Callable[[Frames], Array]
Figure = dict[str, Any]

BUCKETS = (20, 80, 160, 240)
DIRECTIONS = 16
RESAMPLES = 1000

PROTOCOL = {
    "reconstruction_psnr_db": (
        "Mean PSNR of real held-out clips, and of held-out photographs, through the autoencoder and back. Baseline: "
        "the frame shrunk 8 times (Lanczos) and enlarged (bicubic)."
    ),
    "first_frame_psnr_db": (
        "Mean PSNR of the generated clip's first frame to the input picture. The autoencoder's reconstruction of that "
        "picture is the ceiling; both baselines repeat the picture exactly."
    ),
    "frechet": (
        "Frechet distance of TransNet V2 features (its last hidden layer, averaged over the clip) between the "
        "generated and the real held-out clips, paired: same first frame, frame rate and measured motion bucket. "
        f"Features are projected on the {DIRECTIONS} leading principal directions of the real clips, and the length of "
        f"what is left out. Intervals: 95% of {RESAMPLES} bootstrap resamples over shots, the same ones on every side; "
        "`model_minus_...` below 0 means that the model is nearer. Baselines: the still repeated; the still slowly "
        f"enlarged by {ZOOM - 1:.0%}. `autoencoder` is the real clips through the autoencoder: the best to be had."
    ),
    "motion": (
        "Mean measured flow, in short sides a second, of clips generated at four motion buckets from the first frame "
        "of every held-out shot and from every held-out photograph, same noise for the four. `asked` is the flow a "
        "bucket stands for. Spearman's rank correlation of bucket and flow over all inputs pooled; its interval is "
        "over inputs. A still or a fixed zoom takes no bucket: its correlation is 0."
    ),
    "sharpness_kept": (
        "Variance of the Laplacian of the last frame over that of the first, median over the paired clips; `real` is "
        "the real held-out clips."
    ),
    "steadiness": (
        "Medians over the paired clips, in grey levels of 255, beside the real clips'. `warp_error`: mean difference "
        "of a frame and the one before, moved along the measured flow. `flicker`: mean jump of the whole frame's "
        "brightness between neighbours."
    ),
}


def reconstruction(real: list[RealClip], rebuilt: list[Frames], photos: list[Frames], again: list[Frames]) -> Figure:
    """PSNR through the autoencoder, in dB; photographs are [1, H, W, 3] and may be none."""
    figure = {
        "clips": _mean(psnr(clip.frames, other) for clip, other in zip(real, rebuilt, strict=True)),
        "clips_shrunk_and_back": _mean(psnr(clip.frames, _small(clip.frames)) for clip in real),
    }
    if photos:
        figure["photographs"] = _mean(psnr(one, other) for one, other in zip(photos, again, strict=True))
        figure["photographs_shrunk_and_back"] = _mean(psnr(one, _small(one)) for one in photos)
    return figure


def first_frame(real: list[RealClip], generated: list[Frames], rebuilt: list[Frames]) -> Figure:
    """PSNR of the first frame to the picture it was made from, in dB."""
    return {
        "model": _mean(psnr(clip.frames[0], other[0]) for clip, other in zip(real, generated, strict=True)),
        "autoencoder": _mean(psnr(clip.frames[0], other[0]) for clip, other in zip(real, rebuilt, strict=True)),
        "clips": len(real),
    }


def frechet(
    real: list[RealClip], generated: list[Frames], rebuilt: list[Frames], features: Features, report: ProgressCallback
) -> Figure:
    """Distance of the model's clips, the baselines' and the autoencoder's to the real ones."""
    count = len(real[0].frames)
    sides = {
        "real": [clip.frames for clip in real],
        "model": generated,
        "still": [still(clip.frames[0], count) for clip in real],
        "slow_zoom": [slow_zoom(clip.frames[0], count) for clip in real],
        "autoencoder": rebuilt,
    }
    described: dict[str, Array] = {}
    for name, clips in sides.items():
        rows = []
        for done, clip in enumerate(clips):
            report(f"features of {name}", done, len(clips))
            rows.append(features(clip))
        described[name] = np.stack(rows)
    return distances(described, [clip.shot for clip in real])


def distances(described: dict[str, Array], shots: Sequence[str]) -> Figure:
    """Frechet distance of every side's [N, D] features to those of `real`, with intervals over shots."""
    project = Projection.fit(described["real"], DIRECTIONS)
    projected = {name: project(rows) for name, rows in described.items()}
    real = projected.pop("real")
    drawn = resamples(shots, RESAMPLES, seed=0)
    spread = {name: np.array([frechet_distance(real[r], rows[r]) for r in drawn]) for name, rows in projected.items()}
    figure: Figure = {name: frechet_distance(real, rows) for name, rows in projected.items()}
    figure |= {f"{name}_interval": interval(values) for name, values in spread.items()}
    for baseline in ("still", "slow_zoom"):
        figure[f"model_minus_{baseline}_interval"] = interval(spread["model"] - spread[baseline])
    figure["beats_both"] = figure["model"] < min(figure["still"], figure["slow_zoom"])
    return figure | {"clips": len(real), "shots": len(set(shots))}


def motion(clips: list[Frames], fps: float, scale: MotionMap) -> Figure:
    """Obedience to the bucket.

    Args:
        clips: for each input in turn, one clip at each of BUCKETS.
    """
    return obedience(np.array([measure_flow(clip, fps) for clip in clips]).reshape(-1, len(BUCKETS)), scale)


def obedience(flows: Array, scale: MotionMap) -> Figure:
    """What flows, [inputs, buckets], say of obedience to the bucket."""
    buckets = np.tile(BUCKETS, (len(flows), 1))
    drawn = resamples([str(index) for index in range(len(flows))], RESAMPLES, seed=0)
    means = flows.mean(axis=0)
    return {
        "model": {str(bucket): float(mean) for bucket, mean in zip(BUCKETS, means, strict=True)},
        "asked": {str(bucket): scale.flow(bucket) for bucket in BUCKETS},
        "increasing": bool(np.all(np.diff(means) > 0)),
        "spearman": spearman(buckets, flows),
        "spearman_interval": interval([spearman(buckets[rows], flows[rows]) for rows in drawn]),
        "still": 0.0,
        "slow_zoom": 0.0,
        "inputs": len(flows),
    }


def sharpness(real: list[RealClip], generated: list[Frames]) -> Figure:
    """How much of the first frame's sharpness the last one has."""
    zooms = [slow_zoom(clip.frames[0], len(clip.frames)) for clip in real]
    return {
        "model": float(np.median([sharpness_kept(clip) for clip in generated])),
        "real": float(np.median([sharpness_kept(clip.frames) for clip in real])),
        "still": 1.0,
        "slow_zoom": float(np.median([sharpness_kept(clip) for clip in zooms])),
        "clips": len(real),
    }


def steadiness(real: list[RealClip], generated: list[Frames]) -> Figure:
    """What changes between neighbours that motion does not explain; less is steadier, and no motion at all is 0."""
    sides = {"model": generated, "real": [clip.frames for clip in real]}
    return {
        f"{what}_{side}": float(np.median([measure(clip) for clip in clips]))
        for what, measure in (("warp_error", warp_error), ("flicker", flicker))
        for side, clips in sides.items()
    } | {"clips": len(real)}


def _small(clip: Frames) -> Frames:
    return np.stack([shrunk_and_back(frame) for frame in clip])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
