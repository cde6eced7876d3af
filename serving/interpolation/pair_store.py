"""Stored results of a chained job, as files of its folder in the artifact store: each is complete, or absent.

    stage.kept           the first stage's frames
    pair-7.kept          the frames between frames 7 and 8 (from 0)
    pair-7.state         the last checkpoint of that pair's row
    window-2.kept        the frames that a window has added (serving.interpolation.windows), and window-2.state
    larger-3.kept        some frames, made larger (serving.interpolation.upscaling)

A job that resumes begins with what is missing, so a crash costs what one request of the engine has done since its last
checkpoint. A file begins with a header line that names its source; a file of another source (another version of the
checkpoint, another first stage) is ignored. Without these files only time is lost: a full disk stops no job.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from model.errors import StorageFull
from model.interpolation import Frames
from serving.engine.protocol import Completed
from serving.jobs.artifacts import Artifacts

_log = logging.getLogger(__name__)
_SUFFIX: Final = ".kept"
"""Of files with frames; jobs that another version has begun have them under this name."""
STAGE: Final = f"stage{_SUFFIX}"
OF_ONE_VIDEO: Final = frozenset(
    {
        "task",
        "model",
        "model_version",
        "params",
        "seed",
        "output_format",
        "decode_chunks",
        "degraded",
        "drift",
        "engine",
    }
)
"""What a manifest says of one video; the rest is how its engine computes."""


def pair_name(index: int) -> str:
    """The file of the frames made between two neighbours."""
    return f"pair-{index}{_SUFFIX}"


def state_name(index: int) -> str:
    """The file of a pair's last checkpoint."""
    return f"pair-{index}.state"


def window_name(index: int) -> str:
    """The file of the frames that a window has added."""
    return f"window-{index}{_SUFFIX}"


def window_state(index: int) -> str:
    """The file of a window's last checkpoint."""
    return f"window-{index}.state"


def larger_name(index: int) -> str:
    """The file of some frames, made larger."""
    return f"larger-{index}{_SUFFIX}"


def stored_names(pairs: int, windows: int = 0, larger: int = 0) -> list[str]:
    """Every file that a job of so many pairs, windows and runs of larger frames may have here."""
    return [
        STAGE,
        *(name for index in range(pairs) for name in (pair_name(index), state_name(index))),
        *(name for index in range(windows) for name in (window_name(index), window_state(index))),
        *(larger_name(index) for index in range(larger)),
    ]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one request of a chained job made.

    Args:
        frames: [T, H, W, 3], RGB.
        timings: seconds a phase, and the request's own share of `compute`.
    """

    frames: Frames
    degraded: bool
    manifest: dict[str, Any]
    timings: dict[str, float]

    @classmethod
    def of(cls, result: Completed) -> Rendered:
        """The result of a request for raw frames."""
        shape = (result.num_frames, result.height, result.width, 3)
        frames = np.frombuffer(result.video, np.uint8).reshape(shape)
        return cls(frames, result.degraded, result.manifest, result.timings)

    @property
    def compute_s(self) -> float:
        """Its own share of compute."""
        return self.timings.get("compute", 0.0)

    def inner(self) -> Rendered:
        """Without its first and last frame, which are another stage's."""
        return replace(self, frames=self.frames[1:-1])


class PairStore:
    """The files of one job. Every method blocks on the artifact store."""

    def __init__(self, artifacts: Artifacts, job_id: str) -> None:
        self._artifacts = artifacts
        self._job_id = job_id

    def rendered(self, name: str, mark: str) -> Rendered | None:
        """What was made, if it was made of what `mark` says."""
        stored = self._read(name, mark)
        if stored is None:
            return None
        header, data = stored
        frames = np.frombuffer(data, np.uint8).reshape(header["shape"])
        return Rendered(frames, header["degraded"], header["manifest"], header["timings"])

    def put(self, name: str, mark: str, rendered: Rendered) -> None:
        """Store what was made."""
        header = {
            "shape": list(rendered.frames.shape),
            "degraded": rendered.degraded,
            "manifest": rendered.manifest,
            "timings": rendered.timings,
        }
        self._write(name, mark, header, rendered.frames.tobytes())

    def state(self, index: int, mark: str) -> bytes | None:
        """A pair's last checkpoint, if it is of what `mark` says."""
        return self.checkpoint(state_name(index), mark)

    def put_state(self, index: int, mark: str, state: bytes) -> None:
        """Store a pair's checkpoint in place of the one before."""
        self.put_checkpoint(state_name(index), mark, state)

    def discard_state(self, index: int) -> None:
        """A pair's checkpoint is of no use (any more)."""
        self.discard(state_name(index))

    def checkpoint(self, name: str, mark: str) -> bytes | None:
        """A request's last checkpoint, if it is of what `mark` says."""
        stored = self._read(name, mark)
        return None if stored is None else stored[1]

    def put_checkpoint(self, name: str, mark: str, state: bytes) -> None:
        """Store a request's checkpoint in place of the one before."""
        self._write(name, mark, {}, state)

    def discard(self, name: str) -> None:
        """Remove a file; one that is not there is fine."""
        self._artifacts.discard(self._job_id, name)

    def _read(self, name: str, mark: str) -> tuple[dict[str, Any], bytes] | None:
        try:
            line, _, data = self._artifacts.read(self._job_id, name).partition(b"\n")
        except FileNotFoundError:
            return None
        header = json.loads(line)
        return (header, data) if header.pop("mark") == mark else None

    def _write(self, name: str, mark: str, header: dict[str, Any], data: bytes) -> None:
        line = json.dumps({"mark": mark, **header}).encode()
        try:
            self._artifacts.put(self._job_id, name, line + b"\n" + data)
        except (OSError, StorageFull):
            _log.exception("%s of job %s cannot be stored", name, self._job_id)
