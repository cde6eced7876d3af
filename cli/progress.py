"""Progress of long work: a bar with a rate and an ETA on a terminal, plain lines elsewhere. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from serving.engine.protocol import EngineEvent

EVERY_S = 10.0
"""Seconds between two plain lines about the same thing."""


class Report(Protocol):
    """A progress callback: `done` of `total` of what; total 0 for a plain message."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report."""
        ...


@contextmanager
def reporting(stream: TextIO | None = None) -> Iterator[Report]:
    """A report that suits where stderr goes."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield PlainReport(stream)
        return
    with _bars() as report:
        yield report


class PlainReport:
    """Lines: one when something begins, one when it is done, and one every few seconds between."""

    def __init__(self, stream: TextIO, every_s: float = EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._what = ""
        self._began = self._spoke = (0, 0.0)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print, if it is time."""
        now = time.monotonic()
        # A trainer's message changes at each step, so its first word identifies it.
        is_new = what.partition(" ")[0] != self._what.partition(" ")[0] or done < self._spoke[0]
        if is_new:
            self._what, self._began = what, (done, now)
        if total <= 0 or is_new or done >= total > self._spoke[0] or now - self._spoke[1] >= self._every_s:
            self._spoke = (done, now)
            print(what if total <= 0 else self._line(what, done, total, now), file=self._stream, flush=True)

    def _line(self, what: str, done: int, total: int, now: float) -> str:
        first, began = self._began
        rate = (done - first) / (now - began) if now > began else 0.0
        pace = f", {rate:.3g}/s, {seconds((total - done) / rate)} left" if rate and done < total else ""
        return f"{what}: {done}/{total}{pace}"


def seconds(value: float) -> str:
    """A length of time for a person: 45 s, 3:20 min, 2:05 h."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def of_events(report: Report) -> Callable[[EngineEvent], None]:
    """A callback for a generation's events that reports its steps, of either stage, and its decoded frames."""
    from model.stages import NAMES
    from serving.engine.protocol import Decoded, PhaseStarted, Stepped

    phase = "denoise"

    def tell(event: EngineEvent) -> None:
        nonlocal phase
        if isinstance(event, PhaseStarted):
            phase = event.phase if event.phase in NAMES else "denoise"
        elif isinstance(event, Stepped):
            report(phase, event.step, event.total)
        elif isinstance(event, Decoded):
            report("decode", event.frames, event.total)

    return tell


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def report(what: str, done: int, total: int) -> None:
            if total <= 0:
                progress.console.print(what, markup=False, highlight=False)
                return
            key = what.partition(" ")[0]
            if key not in tasks:
                tasks[key] = progress.add_task(what, total=total, completed=done, rate="")
            speed = progress.tasks[list(tasks).index(key)].speed
            rate = f"{speed:.3g}/s" if speed else ""
            progress.update(tasks[key], description=what, completed=done, total=total, rate=rate)

        yield report
