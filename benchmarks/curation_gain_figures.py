"""Figures of curation_gain's four networks on the same held-out clips, and what lies between them, with intervals.

- loss: the validation loss (EDM, equation 8; training.metrics.loss), the mean over noise levels, of each clip;
- frechet: the distance of the sampled clips' TransNet V2 features to the real ones' (training.metrics.figures).

Differences are paired: the same clips, noise and resamples (over shots) on both sides. Below 0: the first is better.

Legend: N clips, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from model.catalog import describe
from model.media.video import contact_sheet_png
from training.data.motion_bucket import MotionMap
from training.metrics.figures import DIRECTIONS
from training.metrics.frechet import Projection, frechet_distance, interval, resamples
from training.metrics.generate import ClipMaker, GenerationRequest
from training.metrics.inputs import RealClip, real_clips
from training.metrics.loss import clean_latents, conditioning_of, noise_levels, validation_loss
from training.metrics.transnet import clip_features

Frames = np.ndarray[Any, np.dtype[np.uint8]]
Array = np.ndarray[Any, np.dtype[np.float64]]
Report = Callable[[str, int, int], None]

RESAMPLES: Final = 1000
COMPARED: Final = (
    ("curated", "as-is"),
    ("curated, finetuned", "as-is, finetuned"),
    ("as-is, finetuned", "as-is"),
    ("curated, finetuned", "curated"),
)
SHOWN_FRAMES: Final = (0, 4, 9, 13)


def measure(
    folders: Mapping[str, Path], starter: Path, work: Path, clips: int, report: Report
) -> tuple[dict[str, Any], dict[str, list[Frames]]]:
    """All figures, and the clips of each side (`real` besides) for a picture."""
    real: list[RealClip] = []
    losses: dict[str, Array] = {}
    shown: dict[str, list[Frames]] = {}
    for name, folder in folders.items():
        entry = describe(folder)
        if not real:
            real = real_clips(starter, entry.num_frames[0], entry.height, entry.width, clips, MotionMap())
            shown["real"] = [one.frames for one in real]
        maker = ClipMaker(entry, work / name.replace(", ", "-"), steps=int(entry.defaults["num_inference_steps"]))
        requests = [GenerationRequest(one.name, one.frames[0], round(one.fps), one.bucket, one.name) for one in real]
        losses[name] = _losses(maker, requests, real, f"loss of {name}", report)
        shown[name] = maker.generated(requests, f"sampling {name}", report)
    described = {name: np.stack([clip_features(one) for one in side]) for name, side in shown.items()}
    return _figures(losses, described, [one.shot for one in real]), shown


def _losses(
    maker: ClipMaker, requests: list[GenerationRequest], real: list[RealClip], what: str, report: Report
) -> Array:
    """The mean loss over noise levels of each clip, [N]."""
    losses = []
    for done, (one, clip) in enumerate(zip(requests, real, strict=True)):
        report(what, done, len(real))
        clean, inputs = clean_latents(maker.checkpoint, clip.frames), conditioning_of(maker, one)
        levels = noise_levels(maker.checkpoint.noise)
        losses.append(np.mean([validation_loss(maker.denoiser, clean, inputs, sigma, one.seed) for sigma in levels]))
    return np.array(losses)


def _figures(losses: dict[str, Array], described: dict[str, Array], shots: list[str]) -> dict[str, Any]:
    drawn = resamples(shots, RESAMPLES, seed=0)
    project = Projection.fit(described["real"], DIRECTIONS)
    projected = {name: project(rows) for name, rows in described.items()}
    loss = {name: [float(own.mean()), *(float(own[rows].mean()) for rows in drawn)] for name, own in losses.items()}
    frechet = {
        name: [frechet_distance(projected["real"][rows], projected[name][rows]) for rows in (slice(None), *drawn)]
        for name in losses
    }
    measured = {"loss": loss, "frechet": frechet}
    sides = {name: {figure: _spread(values[name]) for figure, values in measured.items()} for name in losses}
    between = {
        f"{one} minus {other}": {
            figure: _spread(np.subtract(values[one], values[other])) for figure, values in measured.items()
        }
        for one, other in COMPARED
    }
    return {"sides": sides, "between": between, "clips": len(shots), "shots": len(set(shots))}


def _spread(values: Sequence[float] | Array) -> dict[str, Any]:
    """A figure, which comes first, with the interval of its resamples."""
    return {"mean": float(values[0]), "interval": interval(values[1:])}


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    text = f"{figures['clips']} held-out clips of {figures['shots']} shots; {figures['iterations']} iterations, then "
    text += f"{figures['finetuning']} on the best; clips to train on: {figures['training_clips']}"
    lines = [text]
    for title, rows in (("", figures["sides"]), ("difference (below 0: the first is better)", figures["between"])):
        lines += ["", f"| {title} | validation loss | Frechet distance |", "| --- | --- | --- |"]
        lines += [f"| {name} | {_span(row['loss'], 4)} | {_span(row['frechet'], 2)} |" for name, row in rows.items()]
    return "\n".join(lines)


def _span(figure: dict[str, Any], digits: int) -> str:
    low, high = figure["interval"]
    return f"{figure['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def sheet(shown: Mapping[str, list[Frames]], clips: int = 3) -> bytes:
    """A PNG: for the first clips of different shots, each side's row of four frames."""
    rows, labels = [], []
    for number in range(clips):
        for name, side in shown.items():
            rows += [side[number][k] for k in SHOWN_FRAMES]
            labels += [f"{name}, frame {k + 1}" for k in SHOWN_FRAMES]
    return contact_sheet_png(np.stack(rows), columns=len(SHOWN_FRAMES), labels=labels)
