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
from functools import cached_property
from pathlib import Path
from typing import Any

from model.catalog import SIDECAR, ModelEntry
from model.errors import InvalidRequest
from model.media.video import Frames
from model.platform import is_intel, resolve_device
from model.tasks import TASKS
from training.config import ProgressCallback
from training.data.motion_bucket import MotionMap
from training.eval_page import write_eval_page
from training.metrics import figures, frechet, interpolation, loss, multi_view, prompted, still_itself
from training.metrics.baselines import slow_zoom, still
from training.metrics.generate import ClipMaker, GenerationRequest
from training.metrics.inputs import EvalSample, RealClip, Still, real_clips, stills
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
        figures: which to measure, of image-to-video; none named: all.
        i3d: TorchScript weights for FVD (training.metrics.frechet); None leaves that figure out.
        page: folder for a page with the clips side by side; None for none.
        work: folder that keeps the clips made, so that an interrupted evaluation goes on.
    """

    steps: int | None = None
    batch: int = 1
    device: str = "cpu"
    features: figures.Features = clip_features
    interpolator: interpolation.Interpolator = rife_between
    figures: tuple[str, ...] = ()
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
        InvalidRequest: a limit below 2, I3D weights for a task that has no FVD, or a figure that the task has not.
    """
    if limit is not None and limit < 2:
        raise InvalidRequest(f"figures need at least 2 inputs, not {limit}", param="limit")
    settings, data = settings or EvalSettings(), data or DEFAULT_DATA[entry.task.name]
    if settings.i3d and not entry.task.moving_scene:
        clips = " and ".join(spec.name for spec in TASKS.values() if spec.moving_scene)
        raise InvalidRequest(f"FVD is a figure of {clips}, not of {entry.task.name}", param="i3d")
    if settings.figures and _MEASURES[entry.task.name] is not _image_to_video:
        raise InvalidRequest(
            f"the figures of {entry.task.name} are measured together; leave --figures out", param="figures"
        )
    steps = settings.steps or int(entry.defaults["num_inference_steps"])
    scale = motion_map(entry)
    maker = ClipMaker(entry, settings.work, steps=steps, batch=settings.batch, device=_torch_device(settings.device))
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


class _PictureClips:
    """The clips that image-to-video is measured on; each kind is made when a figure first reads it."""

    def __init__(self, run: _Run) -> None:
        self.run, self.entry = run, run.entry
        self.fps = int(run.entry.defaults["fps"])

    @cached_property
    def real(self) -> list[RealClip]:
        """Held-out film clips."""
        entry, run = self.entry, self.run
        return real_clips(run.data, entry.num_frames[0], entry.height, entry.width, run.limit or CLIPS, run.scale)

    @cached_property
    def films(self) -> list[Frames]:
        """Their frames."""
        return [clip.frames for clip in self.real]

    @cached_property
    def pictures(self) -> dict[str, Still]:
        """Held-out shots' first frames and photographs, by turns."""
        return dict(list(stills(self.run.data, self.entry.height, self.entry.width).items())[: self.run.limit])

    @cached_property
    def photographs(self) -> dict[str, Frames]:
        """The photographs alone, [H, W, 3]."""
        return {name: one.picture for name, one in self.pictures.items() if one.kind == "photo"}

    @cached_property
    def all_photographs(self) -> dict[str, Frames]:
        """As many held-out photographs as the limit has inputs, [H, W, 3]."""
        every = stills(self.run.data, self.entry.height, self.entry.width).items()
        return dict([(name, one.picture) for name, one in every if one.kind == "photo"][: self.run.limit])

    @property
    def requests(self) -> list[GenerationRequest]:
        """A clip of each film clip's first frame."""
        return [_paired(clip) for clip in self.real]

    @cached_property
    def paired(self) -> list[Frames]:
        """What the checkpoint makes of the film clips' first frames."""
        return self.run.maker.generated(self.requests, "sampling paired clips", self.run.report)

    @cached_property
    def rebuilt(self) -> list[Frames]:
        """The film clips through the autoencoder."""
        clips = {clip.name: clip.frames for clip in self.real}
        return self.run.maker.reconstructed(clips, "reconstructing clips", self.run.report)

    @cached_property
    def from_photographs(self) -> list[Frames]:
        """What the checkpoint makes of the photographs at its defaults."""
        bucket = int(self.entry.defaults["motion_bucket_id"])
        requests = [
            GenerationRequest(f"defaults/{name}", picture, self.fps, bucket, name)
            for name, picture in self.all_photographs.items()
        ]
        return self.run.maker.generated(requests, "sampling photographs", self.run.report)

    def reconstruction(self) -> figures.Figure:
        """PSNR through the autoencoder."""
        photos = {name: picture[None] for name, picture in self.photographs.items()}
        again = self.run.maker.reconstructed(photos, "reconstructing photographs", self.run.report)
        return figures.reconstruction(self.real, self.rebuilt, list(photos.values()), again)

    def motion(self) -> figures.Figure:
        """Obedience to four motion buckets."""
        requests = [
            GenerationRequest(f"motion/{name}/{bucket}", one.picture, self.fps, bucket, name)
            for name, one in self.pictures.items()
            for bucket in figures.BUCKETS
        ]
        moving = self.run.maker.generated(requests, "sampling at four buckets", self.run.report)
        return figures.motion(moving, self.fps, self.run.scale)

    def still_itself(self) -> figures.Figure:
        """How much of a picture a clip keeps."""
        photographs = list(self.all_photographs.values())
        photos = {name: picture[None] for name, picture in self.all_photographs.items()}
        rebuilt = self.run.maker.reconstructed(photos, "reconstructing photographs", self.run.report)
        return still_itself.figure(photographs, self.from_photographs, rebuilt, self.films, self.paired)

    def sides(self) -> dict[str, list[Frames]]:
        """Clips to look at, by who made them."""
        return {
            "model": self.paired,
            "still": [still(clip[0], len(clip)) for clip in self.films],
            "slow zoom": [slow_zoom(clip[0], len(clip)) for clip in self.films],
            "autoencoder": self.rebuilt,
        }


def _image_to_video(run: _Run) -> Measured:
    clips, report = _PictureClips(run), run.report
    measures: dict[str, Callable[[], figures.Figure]] = {
        "reconstruction_psnr_db": clips.reconstruction,
        "first_frame_psnr_db": lambda: figures.first_frame(clips.real, clips.paired, clips.rebuilt),
        "frechet": lambda: figures.frechet(clips.real, clips.paired, clips.rebuilt, run.settings.features, report),
        "motion": clips.motion,
        "still_itself": clips.still_itself,
        "sharpness_kept": lambda: figures.sharpness(clips.real, clips.paired),
        "steadiness": lambda: figures.steadiness(clips.real, clips.paired),
        "validation_loss": lambda: loss_figure(run.maker, clips.requests, clips.films, report),
    }
    names = _selected(run.settings.figures, tuple(measures))
    measured = {name: measures[name]() for name in names}
    protocols = figures.PROTOCOL | {"still_itself": still_itself.PROTOCOL, "validation_loss": loss.PROTOCOL}
    protocol = {name: protocols[name] for name in names}
    if run.settings.i3d:
        i3d = frechet.i3d_features(run.settings.i3d)
        measured["fvd"] = frechet.video_distance(clips.films, clips.sides(), i3d, report)
        protocol |= frechet.protocol(run.settings.i3d)
    sides = clips.sides() if run.settings.page else {}
    samples = [
        EvalSample(clip.name, clip.frames, {side: made[k] for side, made in sides.items()})
        for k, clip in enumerate(clips.real if run.settings.page else [])
    ]
    return measured, protocol, samples


def _selected(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The figures that are measured: those named, or all.

    Raises:
        InvalidRequest: a name that no figure of the task has.
    """
    if unknown := [name for name in names if name not in known]:
        raise InvalidRequest(f"no figure is called {unknown[0]!r}; there are: {', '.join(known)}", param="figures")
    return names or known


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


def _torch_device(name: str) -> str:
    """The torch device of a name. Raises InvalidRequest for none, and for those that only OpenVINO runs on."""
    if is_intel(name):
        raise InvalidRequest(f"evaluation runs in torch, which {name} is not for: take cpu or cuda", param="device")
    return resolve_device(name)
