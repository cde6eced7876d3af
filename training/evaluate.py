"""`stillmotion eval`: a checkpoint's figures on held-out footage, each beside its baselines.

Nothing here has been seen in training: the held-out shots and photographs of a dataset folder (training.data.split), or
held-out objects. Each task has its own figures, a file each in training.metrics; how each is taken is in that file's
PROTOCOL, which travels with the figures, and its hash says which figures may be compared.

Legend: T frames, H, W pixels, N clips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.catalog import SIDECAR, ModelEntry
from model.checkpoint import resolve_device
from model.errors import InvalidRequest
from model.tasks import TASKS
from training.config import ProgressCallback
from training.data.motion_bucket import MotionMap
from training.eval_page import write_eval_page
from training.metrics import figures, frechet, interpolation, loss, multi_view, prompted
from training.metrics.baselines import slow_zoom, still
from training.metrics.generate import ClipMaker, GenerationRequest
from training.metrics.inputs import EvalSample, RealClip, real_clips, stills
from training.metrics.loss import loss_figure
from training.metrics.rife import rife_between
from training.metrics.transnet import clip_features

CLIPS = 64
DEFAULT_DATA = {name: Path("data") / spec.dataset for name, spec in TASKS.items()}
DEFAULT_WORK = Path("runs/eval")


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How an evaluation is run.

    Args:
        steps: sampling steps; None for the checkpoint's default.
        batch: clips a denoiser call; more than one pays off on a GPU only.
        device: where the checkpoint runs.
        features: describes a clip for the Frechet distance.
        interpolator: what frame interpolation is compared with besides blending.
        i3d: TorchScript weights for FVD (training.metrics.frechet); None leaves that figure out.
        page: folder for a page with the clips side by side; None for none.
        work: folder that keeps the clips made, so that an interrupted evaluation goes on.
    """

    steps: int | None = None
    batch: int = 1
    device: str = "cpu"
    features: figures.Features = clip_features
    interpolator: interpolation.Interpolator = rife_between
    i3d: Path | None = None
    page: Path | None = None
    work: Path = DEFAULT_WORK


def evaluate(
    entry: ModelEntry,
    data: Path | None = None,
    limit: int | None = None,
    report: ProgressCallback = lambda *_: None,
    settings: EvalSettings | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint; the answer is ready for JSON.

    Args:
        data: a prepared dataset folder; None for data/starter, or data/multi-view for that task.
        limit: paired clips, and inputs of the motion figure, at most: for a quick look.
        report: told (what, done, total) as it goes on.

    Raises:
        DataError: the folder is no dataset, or holds out no shot long enough.
        InvalidRequest: a limit below 2, or I3D weights for a task that has no FVD.
    """
    if limit is not None and limit < 2:
        raise InvalidRequest(f"figures need at least 2 inputs, not {limit}", param="limit")
    settings, data = settings or EvalSettings(), data or DEFAULT_DATA[entry.task.name]
    if settings.i3d and not entry.task.moving_scene:
        clips = " and ".join(spec.name for spec in TASKS.values() if spec.moving_scene)
        raise InvalidRequest(f"FVD is a figure of {clips}, not of {entry.task.name}", param="i3d")
    steps = settings.steps or int(entry.defaults["num_inference_steps"])
    scale = motion_map(entry)
    maker = ClipMaker(entry, settings.work, steps=steps, batch=settings.batch, device=resolve_device(settings.device))
    measured, protocol, shown = _MEASURES[entry.task.name](_Run(entry, data, limit, report, settings, maker, scale))
    results = {
        "model": entry.name,
        "version": entry.version,
        "task": entry.task.name,
        "settings": {"steps": steps, "fps": int(entry.defaults["fps"]), "limit": limit},
        "motion_map": asdict(scale),
        "figures": measured,
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
    }
    if settings.page:
        write_eval_page(settings.page, results, shown)
    return results


def protocol_hash(protocol: dict[str, str]) -> str:
    """First 12 hex digits of a hash over what was measured and how: figures compare where it is the same."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class _Run:
    """One evaluation: what is measured, on what, and where clips come from."""

    entry: ModelEntry
    data: Path
    limit: int | None
    report: ProgressCallback
    settings: EvalSettings
    maker: ClipMaker
    scale: MotionMap


Measured = tuple[dict[str, Any], dict[str, str], list[EvalSample]]
"""Figures, how each was taken, and clips to look at."""


def _image_to_video(run: _Run) -> Measured:
    entry, limit, report = run.entry, run.limit, run.report
    fps = int(entry.defaults["fps"])
    real = real_clips(run.data, entry.num_frames[0], entry.height, entry.width, limit or CLIPS, run.scale)
    pictures = dict(list(stills(run.data, entry.height, entry.width).items())[:limit])
    photos = {name: one.picture[None] for name, one in pictures.items() if one.kind == "photo"}
    requests = [_paired(clip) for clip in real]
    generated_clips = run.maker.generated(requests, "sampling paired clips", report)
    rebuilt = run.maker.reconstructed({clip.name: clip.frames for clip in real}, "reconstructing clips", report)
    again = run.maker.reconstructed(photos, "reconstructing photographs", report)
    buckets = [
        GenerationRequest(f"motion/{name}/{bucket}", one.picture, fps, bucket, name)
        for name, one in pictures.items()
        for bucket in figures.BUCKETS
    ]
    moving = run.maker.generated(buckets, "sampling at four buckets", report)
    measured = {
        "reconstruction_psnr_db": figures.reconstruction(real, rebuilt, list(photos.values()), again),
        "first_frame_psnr_db": figures.first_frame(real, generated_clips, rebuilt),
        "frechet": figures.frechet(real, generated_clips, rebuilt, run.settings.features, report),
        "motion": figures.motion(moving, fps, run.scale),
        "sharpness_kept": figures.sharpness(real, generated_clips),
        "steadiness": figures.steadiness(real, generated_clips),
        "validation_loss": loss_figure(run.maker, requests, [clip.frames for clip in real], report),
    }
    films = [clip.frames for clip in real]
    sides = {
        "model": generated_clips,
        "still": [still(clip[0], len(clip)) for clip in films],
        "slow zoom": [slow_zoom(clip[0], len(clip)) for clip in films],
        "autoencoder": rebuilt,
    }
    protocol = figures.PROTOCOL | {"validation_loss": loss.PROTOCOL}
    if run.settings.i3d:
        measured["fvd"] = frechet.video_distance(films, sides, frechet.i3d_features(run.settings.i3d), report)
        protocol |= frechet.protocol(run.settings.i3d)
    shown = [
        EvalSample(clip.name, clip.frames, {side: clips[k] for side, clips in sides.items()})
        for k, clip in enumerate(real)
    ]
    return measured, protocol, shown


def _interpolation(run: _Run) -> Measured:
    measured, shown = interpolation.interpolation_figures(
        run.entry, run.maker, run.data, run.limit, run.scale, run.report, run.settings.interpolator
    )
    return measured, interpolation.PROTOCOL | {"validation_loss": loss.PROTOCOL}, shown


def _text_to_video(run: _Run) -> Measured:
    i3d = run.settings.i3d
    features = frechet.i3d_features(i3d) if i3d else None
    measured, shown = prompted.prompted_figures(
        run.entry, run.maker, run.data, run.limit, run.scale, run.report, features
    )
    protocol = prompted.PROTOCOL | {"validation_loss": loss.PROTOCOL}
    return measured, protocol | (frechet.protocol(i3d) if i3d else {}), shown


def _multi_view(run: _Run) -> Measured:
    measured, shown = multi_view.multi_view_figures(run.entry, run.maker, run.data, run.limit, run.report)
    return measured, multi_view.PROTOCOL | {"validation_loss": loss.PROTOCOL}, shown


_MEASURES: dict[str, Callable[[_Run], Measured]] = {
    "image-to-video": _image_to_video,
    "text-to-video": _text_to_video,
    "frame-interpolation": _interpolation,
    "multi-view": _multi_view,
}


def motion_map(entry: ModelEntry) -> MotionMap:
    """The map the checkpoint was trained with; today's for a checkpoint that names none."""
    sidecar = entry.path / SIDECAR
    named = json.loads(sidecar.read_text()).get("motion_map") if sidecar.exists() else None
    return MotionMap(**named) if named else MotionMap()


def _paired(clip: RealClip) -> GenerationRequest:
    return GenerationRequest(f"paired/{clip.name}", clip.frames[0], round(clip.fps), clip.bucket, clip.name)
