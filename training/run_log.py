"""What a run writes while it goes on: log.jsonl, and tensorboard with its curves and sampled clips.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from model.media.video import Frames, encode_video
from training.objectives.protocol import Objective

SAMPLE_FPS = 7


class RunLog:
    """A run's log; a context manager.

    Args:
        folder: the run's; None in a process that writes nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._log: IO[str] | None = None
        self._board: Any = None

    def __enter__(self) -> RunLog:
        """Open the log, and tensorboard where it is installed."""
        if self._folder is not None:
            self._log = (self._folder / "log.jsonl").open("a")
            self._board = _board(self._folder / "tensorboard")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close both."""
        if self._log is not None:
            self._log.close()
        if self._board is not None:
            self._board.close()

    def log(self, step: int, values: dict[str, float]) -> None:
        """One line of the log, and one point a curve."""
        if self._log is not None:
            self._log.write(json.dumps({"step": step, **values}) + "\n")
            self._log.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def samples(self, step: int, objective: Objective) -> None:
        """Sampled clips, as moving pictures."""
        if self._board is None:
            return
        for name, clip in objective.samples(step).items():
            _add_clip(self._board, name, clip, step)


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _add_clip(board: Any, name: str, clip: Frames, step: int) -> None:
    # The writer's own add_video needs an editor's package to make the same GIF.
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(
        height=clip.shape[1],
        width=clip.shape[2],
        colorspace=3,
        encoded_image_string=encode_video(clip, SAMPLE_FPS, "gif"),
    )
    board._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=f"clips/{name}", image=image)]), step)
