"""Chained interpolation: a clip of T frames becomes one of 4(T - 1) + 1 at four times the frame rate.

A frame-interpolation checkpoint makes three frames between each two neighbours (paper, section 4 and appendix D). The
clip's own frames stay as they are: of what the checkpoint makes of a pair, the three in the middle are taken. A pair's
seed follows from the clip's seed and the pair's index alone, so a pair is the same video on any server at any time.
Imports no torch.

Legend: T frames of the first stage, H, W pixels; pairs count from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.params import FrameInterpolationParams, Params
from model.shapes import VideoShape
from model.tasks import FRAME_INTERPOLATION, TASKS, task_of

PAIR_FRAMES: Final = FRAME_INTERPOLATION.frames[0]
"""Frames of a pair's clip, both ends counted."""
FACTOR: Final = PAIR_FRAMES - 1
"""How many times the frame rate grows."""
_MOST_FPS: Final = 60
"""The largest fps to condition on (model.params); a clip may be played faster."""

Frames = NDArray[np.uint8]
"""[T, H, W, 3], RGB."""


@dataclass(frozen=True, slots=True)
class InterpolationStage:
    """The second stage of a chained request.

    Args:
        model: the frame-interpolation checkpoint, by name.
        version: its version when this was resolved.
        params: of every pair but for the seed, which is the clip's: `pair` derives each pair's own from it.
    """

    model: str
    version: str
    params: FrameInterpolationParams

    def pair(self, index: int) -> FrameInterpolationParams:
        """The complete settings of a pair."""
        return replace(self.params, seed=pair_seed(self.params.seed, index))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the seed, which is the clip's, is left out."""
        params = {name: value for name, value in asdict(self.params).items() if name != "seed"}
        return {"model": self.model, "model_version": self.version, "params": params}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], seed: int) -> InterpolationStage:
        """The stage of which this is `as_dict`; `seed` is the clip's.

        Raises:
            InvalidRequest, KeyError, TypeError: it is none of ours.
        """
        return cls(stored["model"], stored["model_version"], FrameInterpolationParams(**stored["params"], seed=seed))


def plan_interpolation(entry: ModelEntry, first: Params) -> InterpolationStage:
    """The second stage for a first one, with the checkpoint's own defaults.

    A pair's clip is conditioned on four times the first stage's fps, up to the 60 that may be conditioned on.

    Raises:
        InvalidRequest: the first stage is of a task whose frames are no moments of one clip, or makes a single frame;
            or the checkpoint cannot make clips of 5 frames of its size. `param` is `interpolate`.
    """
    if not task_of(first).moving_scene:
        makers = " and ".join(spec.name for spec in TASKS.values() if spec.moving_scene)
        message = f"only what {makers} make can be interpolated; leave interpolate out"
        raise InvalidRequest(message, code="unknown_field", param="interpolate")
    if not entry.task.restores_ends:
        raise InvalidRequest(f"{entry.name} is for {entry.task.name}, not frame-interpolation", param="interpolate")
    shape = chained_shape(first.shape)
    settings = {
        "num_frames": PAIR_FRAMES,
        "height": shape.height,
        "width": shape.width,
        "fps": min(FACTOR * first.fps, _MOST_FPS),
    }
    try:
        params = entry.resolve(settings, first.seed)
    except InvalidRequest as error:
        message = f"the clip cannot be interpolated: {error.message}; leave interpolate out, or name another model"
        raise InvalidRequest(message, code=error.code, param="interpolate") from error
    return InterpolationStage(entry.name, entry.version, cast(FrameInterpolationParams, params))


def pairs_of(first: Params) -> int:
    """How many pairs of neighbours the first stage's clip has: T - 1."""
    return first.num_frames - 1


def chained_shape(first: VideoShape) -> VideoShape:
    """The size of the whole: 4(T - 1) + 1 frames.

    Raises:
        InvalidRequest: a single frame has no neighbour.
    """
    if first.num_frames < 2:
        raise InvalidRequest("a clip of one frame has no neighbours to interpolate between", param="interpolate")
    return VideoShape(FACTOR * (first.num_frames - 1) + 1, first.height, first.width, first.unit)


def pair_seed(seed: int, index: int) -> int:
    """A pair's seed: the first 32 bits, big-endian, of SHA-256 over the text `SEED/INDEX` in decimal."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode("ascii")).digest()[:4], "big")


def interleave(first: Frames, between: Sequence[Frames]) -> Frames:
    """The whole clip: the first stage's frames as they are, and after each but the last the three made there.

    Args:
        between: one [3, H, W, 3] a pair, in order.

    Raises:
        InvalidRequest: not one for each pair, or of another size.
    """
    shape = (FACTOR - 1, *first.shape[1:])
    if len(between) != len(first) - 1 or any(part.shape != shape for part in between):
        raise InvalidRequest(f"{len(first)} frames have {len(first) - 1} pairs, each with {FACTOR - 1} frames between")
    parts = [piece for frame, part in zip(first[:-1], between, strict=True) for piece in (frame[None], part)]
    return np.concatenate([*parts, first[-1:]])
