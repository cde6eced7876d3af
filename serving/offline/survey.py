"""The dry run: every row checked, its pictures decoded, and the render time estimated. Nothing is rendered.

Faults are reported with row and column as they are found. The estimate adds up the checkpoints' measured profiles on
this machine (measured now where there is none) over the rows that are not complete.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from model.errors import StillmotionError
from model.params import Params
from serving.engine.settings import EngineSettings
from serving.offline.manifest import Line, NameSet, open_render_list, read_lines
from serving.offline.output import RECORDS, Output, PictureReader
from serving.offline.rows import RowContext, RowRequest, read_row
from serving.offline.run import Batch, ProgressCallback

_READERS: Final = 8
_AT_ONCE: Final = 64
_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a row: `column` is empty where it is the row as a whole."""

    row: int
    column: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What a dry run found.

    Args:
        rows: looked at.
        complete: of them, in the output folder already.
        faulty: of them, not to be rendered.
        estimate_s: seconds for the rest, one after another on one engine like this machine's; None while no profile
            knows.
    """

    rows: int
    complete: int
    faulty: int
    estimate_s: float | None


def survey(batch: Batch, report_fault: Callable[[Fault], None], report: ProgressCallback) -> Survey:
    """Look at every row.

    Args:
        tell: given each fault, in the manifest's order.

    Raises:
        DataError: the manifest as a whole cannot be read.
        CheckpointError: a checkpoint does not load.
    """
    manifest = open_render_list(batch.manifest)
    reading = batch.reading(manifest)
    total = batch.portion.count(manifest.count())
    done = NameSet(Output(batch.out).names(RECORDS))
    kinds: Counter[tuple[str, Params]] = Counter()
    rows = complete = faulty = 0
    for line, outcome in _checked(read_lines(manifest, batch.portion, reading), reading):
        rows += 1
        if isinstance(outcome, StillmotionError):
            faulty += 1
            report_fault(Fault(line.row, outcome.param or "", outcome.code, outcome.message))
        elif line.id in done:
            complete += 1
        else:
            kinds[(outcome.entry.name, outcome.params.timing_key())] += 1
        report("rows checked", rows, total)
    return Survey(rows, complete, faulty, asyncio.run(_estimate(batch, kinds, report)) if kinds else 0.0)


def _checked(lines: Iterable[Line], reading: RowContext) -> Iterator[tuple[Line, RowRequest | StillmotionError]]:
    """Each line with its request or its fault; pictures are opened by several threads, a bounded number ahead."""
    pictures = _Pictures()
    waiting: list[tuple[Line, Future[RowRequest | StillmotionError]]] = []
    with ThreadPoolExecutor(_READERS, "stillmotion-survey") as pool:
        for line in lines:
            waiting.append((line, pool.submit(_check, line, reading, pictures)))
            if len(waiting) == _AT_ONCE:
                first, future = waiting.pop(0)
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


class _Pictures:
    """Opens pictures; one that many rows name is opened once."""

    def __init__(self) -> None:
        self._reader = PictureReader()
        self._remembered = lru_cache(_REMEMBERED)(self._problem)

    def check(self, request: RowRequest) -> None:
        """Raises InvalidRequest, Unreachable: `param` names the column."""
        for name, picture in zip(request.entry.task.pictures, request.pictures, strict=True):
            problem = self._remembered(picture)
            if problem is not None:
                raise type(problem)(problem.message, code=problem.code, param=name)

    def _problem(self, picture: bytes | str) -> StillmotionError | None:
        try:
            self._reader.open(picture)
        except StillmotionError as error:
            return error
        return None


def _check(line: Line, reading: RowContext, pictures: _Pictures) -> RowRequest | StillmotionError:
    try:
        if line.fault is not None:
            raise line.fault
        request = read_row(json.loads(line.text), reading, strict=line.strict)
        pictures.check(request)
    except StillmotionError as error:
        return error
    return request


async def _estimate(batch: Batch, kinds: Counter[tuple[str, Params]], report: ProgressCallback) -> float | None:
    from serving.engine.inprocess import InProcessEngine

    report("measuring", 0, 0)
    names = {name for name, _ in kinds}
    entries = [entry for entry in batch.entries if entry.name in names]
    settings: EngineSettings = replace(batch.settings, warm_up=True)
    engine = InProcessEngine(entries, settings)
    try:
        await engine.start()
        each = {kind: engine.estimate(*kind) for kind in kinds}
    finally:
        await engine.stop()
    seconds = [one * kinds[kind] for kind, one in each.items() if one is not None]
    return sum(seconds) if len(seconds) == len(each) else None
