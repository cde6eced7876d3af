"""`stillmotion eval`: a checkpoint's figures on held-out footage, each beside its baselines.

Nothing here has been seen in training: the held-out shots and photographs of a dataset folder (training.data.split).
The generated clips are paired with real ones: same first frame, same frame rate, and the motion bucket measured from
the real clip. How each figure is taken is in
training.metrics.figures.PROTOCOL, which travels with the figures.

Legend: T frames, H, W pixels, N clips.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.catalog import SIDECAR, ModelEntry
from model.errors import InvalidRequest
from training.metrics import figures
from training.metrics.generate import ClipMaker, Wanted
from training.metrics.inputs import RealClip, real_clips, stills
from training.metrics.transnet import clip_features
from training.motion import MotionMap

Report = Callable[[str, int, int], None]

CLIPS = 64
DEFAULT_DATA = Path("data/starter")
DEFAULT_WORK = Path("runs/eval")


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How an evaluation is run.

    Args:
        steps: sampling steps; None for the checkpoint's default.
        batch: clips a denoiser call; more than one pays off on a GPU only.
        device: where the checkpoint runs.
        features: describes a clip for the Frechet distance.
        work: folder that keeps the clips made, so that an interrupted evaluation goes on.
    """

    steps: int | None = None
    batch: int = 1
    device: str = "cpu"
    features: figures.Features = clip_features
    work: Path = DEFAULT_WORK


def evaluate(
    entry: ModelEntry,
    data: Path | None = None,
    limit: int | None = None,
    report: Report = lambda *_: None,
    settings: EvalSettings | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint; the answer is ready for JSON.

    Args:
        data: a prepared dataset folder; None for data/starter.
        limit: paired clips, and inputs of the motion figure, at most: for a quick look.
        report: told (what, done, total) as it goes on.

    Raises:
        DataError: the folder is no dataset, or holds out no shot long enough.
        InvalidRequest: a limit below 2.
    """
    if limit is not None and limit < 2:
        raise InvalidRequest(f"figures need at least 2 inputs, not {limit}", param="limit")
    settings, data = settings or EvalSettings(), data or DEFAULT_DATA
    steps = settings.steps or int(entry.defaults["num_inference_steps"])
    scale, fps = motion_map(entry), int(entry.defaults["fps"])
    maker = ClipMaker(entry, settings.work, steps=steps, batch=settings.batch, device=settings.device)
    real = real_clips(data, entry.num_frames[0], entry.height, entry.width, limit or CLIPS, scale)
    pictures = dict(list(stills(data, entry.height, entry.width).items())[:limit])
    photos = {name: one.picture[None] for name, one in pictures.items() if one.kind == "photo"}
    made = maker.generated([_paired(clip) for clip in real], "sampling paired clips", report)
    rebuilt = maker.reconstructed({clip.name: clip.frames for clip in real}, "reconstructing clips", report)
    again = maker.reconstructed(photos, "reconstructing photographs", report)
    moving = maker.generated(
        [
            Wanted(f"motion/{name}/{bucket}", one.picture, fps, bucket, name)
            for name, one in pictures.items()
            for bucket in figures.BUCKETS
        ],
        "sampling at four buckets",
        report,
    )
    return {
        "model": entry.name,
        "version": entry.version,
        "settings": {"steps": steps, "fps": fps, "paired_clips": len(real), "pictures": len(pictures)},
        "motion_map": asdict(scale),
        "figures": {
            "reconstruction_psnr_db": figures.reconstruction(real, rebuilt, list(photos.values()), again),
            "first_frame_psnr_db": figures.first_frame(real, made, rebuilt),
            "frechet": figures.frechet(real, made, rebuilt, settings.features, report),
            "motion": figures.motion(moving, fps, scale),
            "sharpness_kept": figures.sharpness(real, made),
        },
        "protocol": figures.PROTOCOL,
    }


def motion_map(entry: ModelEntry) -> MotionMap:
    """The map the checkpoint was trained with; today's for a checkpoint that names none."""
    sidecar = entry.path / SIDECAR
    named = json.loads(sidecar.read_text()).get("motion_map") if sidecar.exists() else None
    return MotionMap(**named) if named else MotionMap()


def _paired(clip: RealClip) -> Wanted:
    return Wanted(f"paired/{clip.name}", clip.frames[0], round(clip.fps), clip.bucket, clip.name)
