"""The stages of a finished clip: what is done to a generated clip, in this order, each at most once.

    extend        more windows of an image-to-video checkpoint, each beginning with the last frame of the clip so far
    interpolate   three frames between each two (model.interpolation)
    upscale       every frame larger, by Lanczos or by a network that the operator names

A window is an ordinary image-to-video clip: its picture is the clip's last frame, its noise the clip's own (the same
seed), so that the motion which the noise carries goes on. Its first frame is that picture once more and is dropped.
Colours drift from window to window, since each is made of a decoded frame; `continue_clip` measures the drift against
the clip's first frame and takes part of it back, gradually along the window, so that no seam is seen. Imports no torch.

Legend: T frames, H, W pixels; windows count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.interpolation import FACTOR, Frames, InterpolationStage
from model.media.upscale import FACTORS, LANCZOS
from model.params import ImageToVideoParams, Params
from model.tasks import IMAGE_TO_VIDEO, task_of

MAX_FRAMES: Final = 1000
"""Of an extended clip, before interpolation."""
_DRIFT_TAKEN_BACK: Final = 0.5
"""Share of a window's drift that is taken back by its end: a scene's colours may change in earnest too."""
_MOST_SHIFT: Final = 16.0
"""Levels of 0 to 255 by which a channel's mean is shifted at most."""
_MOST_GAIN: Final = 1.25
"""Factor by which a channel's contrast is changed at most, either way."""

_Stats = NDArray[np.float64]
"""[3], one a channel."""


@dataclass(frozen=True, slots=True)
class ExtendStage:
    """More frames than a checkpoint makes at once.

    Args:
        model: the image-to-video checkpoint that goes on, by name.
        version: its version when this was resolved.
        params: of every window; the seed is the clip's.
        begin: frames that the generated clip has.
        num_frames: of the whole clip.
    """

    model: str
    version: str
    params: ImageToVideoParams
    begin: int
    num_frames: int

    @property
    def windows(self) -> int:
        """How many windows are made."""
        return math.ceil((self.num_frames - self.begin) / (self.params.num_frames - 1))

    def window_frames(self, index: int) -> int:
        """Frames of a window that go into the clip; the last window may have more than are wanted."""
        each = self.params.num_frames - 1
        return min(each, self.num_frames - self.begin - index * each)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the seed, which is the clip's, is left out."""
        params = {name: value for name, value in asdict(self.params).items() if name != "seed"}
        return {
            "model": self.model,
            "model_version": self.version,
            "begin": self.begin,
            "num_frames": self.num_frames,
            "params": params,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], seed: int) -> ExtendStage:
        """The stage of which this is `as_dict`. Raises InvalidRequest, KeyError, TypeError: it is none of ours."""
        params = ImageToVideoParams(**stored["params"], seed=seed)
        return cls(stored["model"], stored["model_version"], params, int(stored["begin"]), int(stored["num_frames"]))


@dataclass(frozen=True, slots=True)
class UpscaleStage:
    """Every frame larger.

    Args:
        factor: of each side.
        network: `lanczos`, or the name of a network that the server was started with.
        version: first 12 hex digits of the network's SHA-256; empty for Lanczos.
    """

    factor: int
    network: str = LANCZOS
    version: str = ""

    def __post_init__(self) -> None:
        if self.factor not in FACTORS:
            raise InvalidRequest(f"upscale must be one of {', '.join(map(str, FACTORS))}", param="upscale")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> UpscaleStage:
        """The stage of which this is `as_dict`. Raises InvalidRequest, KeyError, TypeError: it is none of ours."""
        return cls(int(stored["factor"]), str(stored["network"]), str(stored["version"]))


@dataclass(frozen=True, slots=True)
class ClipSize:
    """What a job's video measures."""

    num_frames: int
    height: int
    width: int
    fps: int


@dataclass(frozen=True, slots=True)
class Stages:
    """What follows a generated clip; all None: nothing does."""

    extend: ExtendStage | None = None
    interpolate: InterpolationStage | None = None
    upscale: UpscaleStage | None = None

    def __bool__(self) -> bool:
        return any(stage is not None for stage in (self.extend, self.interpolate, self.upscale))

    def size(self, first: Params) -> ClipSize:
        """Of the finished video, where `first` are the generated clip's settings."""
        frames, fps = self.frames_to_interpolate(first), first.fps
        factor = 1 if self.upscale is None else self.upscale.factor
        if self.interpolate is not None:
            frames, fps = FACTOR * (frames - 1) + 1, FACTOR * fps
        return ClipSize(frames, factor * first.height, factor * first.width, fps)

    def frames_to_interpolate(self, first: Params) -> int:
        """Frames of the clip once it is extended."""
        return first.num_frames if self.extend is None else self.extend.num_frames

    def steps(self, first: Params) -> dict[str, int]:
        """Steps of each stage there is, in order: solver steps, or frames that are made larger."""
        steps = {}
        if self.extend is not None:
            steps["extend"] = self.extend.windows * self.extend.params.num_inference_steps
        if self.interpolate is not None:
            pairs = self.frames_to_interpolate(first) - 1
            steps["interpolate"] = pairs * self.interpolate.params.num_inference_steps
        if self.upscale is not None:
            steps["upscale"] = self.size(first).num_frames
        return steps

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, by name; without those that there are not."""
        stages = {"extend": self.extend, "interpolate": self.interpolate, "upscale": self.upscale}
        return {name: stage.as_dict() for name, stage in stages.items() if stage is not None}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], seed: int) -> Stages:
        """Those of which this is `as_dict`; other names are left alone, `seed` is the clip's.

        Raises:
            InvalidRequest, KeyError, TypeError: they are none of ours.
        """
        extend, interpolate, upscale = (stored.get(name) for name in NAMES)
        return cls(
            None if extend is None else ExtendStage.from_dict(extend, seed),
            None if interpolate is None else InterpolationStage.from_dict(interpolate, seed),
            None if upscale is None else UpscaleStage.from_dict(upscale),
        )


NO_STAGES: Final = Stages()
NAMES: Final = ("extend", "interpolate", "upscale")
"""The stages after the first, in their order; also the phases of a job, and the keys of its settings and manifest."""


def plan_extension(entry: ModelEntry, first: Params, num_frames: int) -> ExtendStage:
    """The stage that makes a clip of `num_frames` of the one that `first` gives.

    Settings that both have are the clip's own where `entry` makes it itself, else the checkpoint's defaults, at the
    clip's size and rate.

    Raises:
        InvalidRequest: the clip is no moving scene, is as long already, or would be too long; or the checkpoint is of
            another task, or cannot make windows of its size. `param` is `num_frames`.
    """
    if not task_of(first).moving_scene:
        raise InvalidRequest("only a moving scene can be made longer; leave extend out", param="num_frames")
    if entry.task is not IMAGE_TO_VIDEO:
        message = f"{entry.name} is for {entry.task.name}, and cannot go on from a frame"
        raise InvalidRequest(message, param="num_frames")
    if not first.num_frames < num_frames <= MAX_FRAMES:
        raise InvalidRequest(
            f"a clip of {first.num_frames} frames can be extended to {first.num_frames + 1} to {MAX_FRAMES} frames, "
            f"not {num_frames}",
            param="num_frames",
            code="out_of_range",
        )
    if isinstance(first, ImageToVideoParams):
        settings = {name: value for name, value in asdict(first).items() if name != "seed"}
    else:
        settings = {
            "num_frames": max(entry.num_frames),
            "height": first.height,
            "width": first.width,
            "fps": first.fps,
            "motion_bucket_id": first.motion_bucket_id,
        }
    try:
        params = entry.resolve(settings, first.seed)
    except InvalidRequest as error:
        message = f"the clip cannot be extended by {entry.name}: {error.message}"
        raise InvalidRequest(message, code=error.code, param="num_frames") from error
    if params.num_frames < 2:
        raise InvalidRequest(f"{entry.name} makes single frames, which extend nothing", param="num_frames")
    window = replace(cast(ImageToVideoParams, params), resize_mode="stretch")  # the picture has the clip's size already
    return ExtendStage(entry.name, entry.version, window, first.num_frames, num_frames)


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a window's last frame is from the clip's first one, in levels: the largest channel mean's difference.

    Args:
        found: as the window was made, once its colours meet the seam.
        left: after the correction.
    """

    found: float
    left: float


def continue_clip(still: Frames, last: Frames, window: Frames) -> tuple[Frames, Drift]:
    """A window's frames as the clip's continuation.

    Args:
        still: [H, W, 3], the clip's first frame, which the drift is measured against.
        last: [H, W, 3], the frame that the window begins with.
        window: [T, H, W, 3], with that frame once more as its first.

    Returns:
        [T - 1, H, W, 3], and the drift at its end.
    """
    goal_mean, goal_std = _stats(still)
    seam_mean, seam_std = _stats(last)
    own_mean, own_std = _stats(window[0])
    gain = _bounded_gain(seam_std, own_std)
    count = len(window)
    end_mean, end_std = _stats(window[-1])
    end_mean, end_std = (end_mean - own_mean) * gain + seam_mean, end_std * gain
    shift = np.clip(_DRIFT_TAKEN_BACK * (end_mean - goal_mean), -_MOST_SHIFT, _MOST_SHIFT)
    contrast = _bounded_gain(goal_std, end_std) ** _DRIFT_TAKEN_BACK
    frames = np.empty((count - 1, *window.shape[1:]), np.uint8)
    for index in range(1, count):
        share = index / (count - 1)
        mean, _ = _stats(window[index])
        centre = (mean - own_mean) * gain + seam_mean
        values = (window[index].astype(np.float64) - mean) * gain * contrast**share + centre - share * shift
        frames[index - 1] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    left, _ = _stats(frames[-1])
    return frames, Drift(_largest(end_mean - goal_mean), _largest(left - goal_mean))


def _stats(frame: Frames) -> tuple[_Stats, _Stats]:
    """Mean and standard deviation of each channel."""
    pixels = frame.reshape(-1, 3).astype(np.float64)
    return pixels.mean(axis=0), pixels.std(axis=0)


def _bounded_gain(wanted: _Stats, there: _Stats) -> _Stats:
    """The contrast's factor; 1 where there is next to none to change."""
    ratio = np.divide(wanted, there, out=np.ones(3), where=there > 1.0)
    gain: _Stats = np.clip(ratio, 1 / _MOST_GAIN, _MOST_GAIN)
    return gain


def _largest(difference: _Stats) -> float:
    return round(float(np.abs(difference).max()), 3)
