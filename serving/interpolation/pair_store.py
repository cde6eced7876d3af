"""What a chained job has made so far, as files of its folder in the artifact store: each is whole, or is not there.

    stage.kept           the first stage's frames
    pair-7.kept          the frames made between frames 7 and 8 (from 0)
    pair-7.state         the last checkpoint of that pair's row

So a job that comes again begins with what is not there, and a crash costs what one request of the engine has done since
its last checkpoint. A file begins with a line that says what it was made of; one made of something else (another
version of the checkpoint, another first stage) is as good as none. Nothing is lost without these files but time: a disk
that is full stops no job.
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
STAGE: Final = "stage.kept"


def pair_name(index: int) -> str:
    """The file of the frames made between two neighbours."""
    return f"pair-{index}.kept"


def state_name(index: int) -> str:
    """The file of a pair's last checkpoint."""
    return f"pair-{index}.state"


def kept_names(pairs: int) -> list[str]:
    """Every file that a job of so many pairs may have here."""
    return [STAGE, *(name for index in range(pairs) for name in (pair_name(index), state_name(index)))]


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
        """The result of a request that asked for raw frames."""
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


class Kept:
    """The files of one job. Every method blocks on the artifact store."""

    def __init__(self, artifacts: Artifacts, job_id: str) -> None:
        self._artifacts = artifacts
        self._job_id = job_id

    def rendered(self, name: str, mark: str) -> Rendered | None:
        """What was made, if it was made of what `mark` says."""
        found = self._read(name, mark)
        if found is None:
            return None
        told, data = found
        frames = np.frombuffer(data, np.uint8).reshape(told["shape"])
        return Rendered(frames, told["degraded"], told["manifest"], told["timings"])

    def keep(self, name: str, mark: str, made: Rendered) -> None:
        """Store what was made."""
        told = {
            "shape": list(made.frames.shape),
            "degraded": made.degraded,
            "manifest": made.manifest,
            "timings": made.timings,
        }
        self._write(name, mark, told, made.frames.tobytes())

    def state(self, index: int, mark: str) -> bytes | None:
        """A pair's last checkpoint, if it is of what `mark` says."""
        found = self._read(state_name(index), mark)
        return None if found is None else found[1]

    def keep_state(self, index: int, mark: str, state: bytes) -> None:
        """Store a pair's checkpoint in place of the one before."""
        self._write(state_name(index), mark, {}, state)

    def discard_state(self, index: int) -> None:
        """A pair's checkpoint is of no use (any more)."""
        self._artifacts.discard(self._job_id, state_name(index))

    def _read(self, name: str, mark: str) -> tuple[dict[str, Any], bytes] | None:
        try:
            line, _, data = self._artifacts.read(self._job_id, name).partition(b"\n")
        except FileNotFoundError:
            return None
        told = json.loads(line)
        return (told, data) if told.pop("mark") == mark else None

    def _write(self, name: str, mark: str, told: dict[str, Any], data: bytes) -> None:
        line = json.dumps({"mark": mark, **told}).encode()
        try:
            self._artifacts.put(self._job_id, name, line + b"\n" + data)
        except (OSError, StorageFull):
            _log.exception("%s of job %s cannot be stored", name, self._job_id)
