"""From a curated dataset to clips that can be voted on: subsets, proxies, samples. Goes on where it was stopped.

    CALIBRATION/plan.json          axes, shares, stills, pairs; written last, so it is there when all is
    CALIBRATION/subsets/AXIS-SHARE the datasets; `all` is the share 0 of every axis, trained once
    CALIBRATION/runs/AXIS-SHARE    the proxies
    CALIBRATION/stills/NAME.jpg    what the proxies are shown
    CALIBRATION/clips/NAME.mp4     what they sampled, and spoilt copies for attention checks

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.errors import DataError
from model.media.video import Frames
from training.config import ProgressCallback
from training.curation.calibrate.pairs import Pair, clip_name, plan_pairs
from training.curation.calibrate.subsets import SHARES, held_out, leaves, write_subset
from training.curation.filter import Scores, load_scores
from training.curation.frames import ClipFrames
from training.curation.records import ClipRecord
from training.curation.tables import read_table, replace_file, write_text

Train = Callable[[str, Path, Path], Path]
"""What trains a proxy: (recipe, dataset folder, folder of runs) to a checkpoint folder."""
Sample = Callable[[Path, dict[str, Frames], Path], dict[str, Frames]]
"""What samples it: (checkpoint folder, pictures by name, work folder) to clips by name."""

PLAN = "plan.json"
ALL = "all"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is to be calibrated.

    Args:
        dataset: a curated dataset folder.
        folder: where everything is kept.
        axes: scores' names.
        shares: percent of the clips that the subsets leave out; 0 among them.
        recipe: that trains the proxies.
        networks: folder of runs with the recipe's frozen networks.
        stills: how many held-out stills the proxies are shown.
    """

    dataset: Path
    folder: Path
    axes: tuple[str, ...]
    recipe: str
    networks: Path
    shares: tuple[float, ...] = SHARES
    stills: int = 64
    overrides: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(set(self.shares)) < 2 or 0 not in self.shares or not all(0 <= share < 100 for share in self.shares):
            raise DataError(f"shares are percentages below 100, 0 among them, not {self.shares}")

    def run_of(self, axis: str, share: float) -> str:
        """The name of the subset and its proxy."""
        return ALL if share == 0 else f"{axis}-{share:g}"


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """What can be voted on, and what the thresholds are made of afterwards."""

    dataset: str
    axes: tuple[str, ...]
    shares: tuple[float, ...]
    recipe: str
    pairs: tuple[Pair, ...]


def read_plan(folder: Path) -> CalibrationPlan:
    """A prepared calibration's plan.

    Raises:
        DataError: the preparation did not come to its end.
    """
    path = folder / PLAN
    if not path.exists():
        raise DataError(f"{folder} holds no plan: run `stillmotion curate calibrate prepare` to its end first")
    values = json.loads(path.read_text())
    pairs = tuple(Pair(**pair) for pair in values["pairs"])
    return CalibrationPlan(values["dataset"], tuple(values["axes"]), tuple(values["shares"]), values["recipe"], pairs)


def prepare(
    calibration: Calibration,
    report: ProgressCallback = lambda *_: None,
    train: Train | None = None,
    sample: Sample | None = None,
) -> CalibrationPlan:
    """Make everything that is voted on; what is there already is not made again.

    Args:
        train, sample: left out, the recipe and the checkpoint's own sampler.

    Raises:
        DataError: no curated dataset, an axis that was not scored, or no still held out.
    """
    scores = load_scores(calibration.dataset)
    clips = read_table(calibration.dataset / "clips.parquet", ClipRecord)
    kept_out = held_out(clips)
    names = write_subsets(calibration, scores, clips, kept_out)
    pictures = first_frames(
        calibration.dataset, [clip for clip in clips if clip.clip_id in kept_out][: calibration.stills]
    )
    for still, frame in pictures.items():
        write_still(calibration.folder, still, frame)
    trainer, sampler = train or _recipe(calibration, report), sample or _sampler(report)
    for done, name in enumerate(names):
        report(f"proxy {name}", done, len(names))
        checkpoint = trainer(
            calibration.recipe, calibration.folder / "subsets" / name, calibration.folder / "runs" / name
        )
        for still, frames in sampler(checkpoint, pictures, calibration.folder / "work" / name).items():
            for axis, share in ((a, s) for a in calibration.axes for s in calibration.shares):
                if calibration.run_of(axis, share) == name:
                    write_clip(calibration.folder, clip_name(axis, share, still), frames)
    pairs = plan_pairs(calibration.axes, calibration.shares, list(pictures))
    plan = CalibrationPlan(
        str(calibration.dataset), calibration.axes, calibration.shares, calibration.recipe, tuple(pairs)
    )
    write_text(calibration.folder / PLAN, json.dumps(dataclasses.asdict(plan)) + "\n")
    return plan


def write_subsets(
    calibration: Calibration, scores: Scores, clips: Sequence[ClipRecord], kept_out: set[str]
) -> list[str]:
    """The subsets' dataset folders; returns their names."""
    ids = np.array(scores.clip_ids)
    selected = {ALL: set(scores.clip_ids)}
    for axis in calibration.axes:
        for share in calibration.shares:
            mask = leaves(axis, share, scores)
            if share:
                selected[calibration.run_of(axis, share)] = set(ids[mask].tolist())
    for name, own in selected.items():
        write_subset(calibration.folder / "subsets" / name, calibration.dataset, clips, own, kept_out)
    return list(selected)


def first_frames(dataset: Path, clips: Sequence[ClipRecord]) -> dict[str, Frames]:
    """The first frame of each clip, [H, W, 3], by clip id.

    Raises:
        DataError: there are no clips.
    """
    if not clips:
        raise DataError("the dataset holds no clip out of training, so there is no still to sample from")
    return {clip.clip_id: ClipFrames(dataset / clip.file, clip).first_middle_last()[0] for clip in clips}


def write_still(folder: Path, name: str, frame: Frames) -> None:
    """A still [H, W, 3] as stills/NAME.jpg, for the voting page."""
    sink = io.BytesIO()
    Image.fromarray(frame).save(sink, "JPEG", quality=90)
    path = folder / "stills" / f"{name}.jpg"
    if not path.exists():
        replace_file(path, _writer(sink.getvalue()))


def spoilt(frames: Frames) -> Frames:
    """A copy [T, H, W, 3] that anyone sees is worse: its frames out of order, each a mosaic of large blocks."""
    order = np.random.default_rng(0).permutation(len(frames))
    coarse = frames[order][:, ::16, ::16]
    return coarse.repeat(16, 1).repeat(16, 2)[:, : frames.shape[1], : frames.shape[2]]


def write_clip(folder: Path, name: str, frames: Frames, fps: int = 6) -> None:
    """A clip and its spoilt copy as clips/NAME.mp4 and clips/NAME/spoilt.mp4."""
    from model.media.video import encode_video

    for end, shown in (("", frames), ("/spoilt", spoilt(frames))):
        path = folder / "clips" / f"{name}{end}.mp4"
        if not path.exists():
            replace_file(path, _writer(encode_video(shown, fps, "mp4")))


def _writer(data: bytes) -> Callable[[Path], object]:
    return lambda partial: partial.write_bytes(data)


def _recipe(calibration: Calibration, report: ProgressCallback) -> Train:
    """Training by the recipe; frozen networks and the cache of frames are shared by all proxies."""

    def train(recipe: str, data: Path, out: Path) -> Path:
        from training.train import train as run_recipe

        out.mkdir(parents=True, exist_ok=True)
        cache = calibration.folder / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        for shared in (cache, *(path for path in calibration.networks.iterdir() if (path / "state.pt").exists())):
            link = out / shared.name
            if shared.name != recipe and not link.exists():
                link.symlink_to(shared.resolve())
        checkpoint = out / recipe / "checkpoint"
        if not checkpoint.exists():
            run_recipe(recipe, data, out, list(calibration.overrides), (out / recipe / "state.pt").exists(), report)
        return checkpoint

    return train


def _sampler(report: ProgressCallback) -> Sample:
    def sample(checkpoint: Path, pictures: dict[str, Frames], work: Path) -> dict[str, Frames]:
        from PIL import Image

        from model.catalog import describe
        from training.metrics.generate import ClipMaker, GenerationRequest

        entry = describe(checkpoint)
        settings: dict[str, Any] = entry.defaults
        maker = ClipMaker(entry, work, steps=int(settings["num_inference_steps"]))
        size = (entry.width, entry.height)
        requests = [
            GenerationRequest(
                name,
                np.asarray(Image.fromarray(one).resize(size)),
                int(settings["fps"]),
                int(settings["motion_bucket_id"]),
                name,
            )
            for name, one in pictures.items()
        ]
        return dict(zip(pictures, maker.generated(requests, "sampling", report), strict=True))

    return sample
