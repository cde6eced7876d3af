"""Rows to records on an engine that follows a script: retries, losses, races, and what is on the disk when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from model.errors import GenerationFailed
from model.params import Params
from serving.engine.protocol import EngineEvent, EngineRequest, Failed
from serving.engine.settings import EngineSettings
from serving.offline.manifest import Line, Portion, open_render_list, read_lines
from serving.offline.output import Output, PictureReader, Unreachable
from serving.offline.result_log import Result, parse
from serving.offline.worker import LOSSES, RowRenderer, WorkerConfig
from tests.support.fakes import ScriptedEngine
from tests.unit.serving.offline.support import BAD_ROWS, GOOD, reading, stills, write_bad_manifest


@dataclass
class Engine:
    """Ends each request as `ends` says: an event, or None for a canned video.

    Args:
        at_submit: called when a request comes.
    """

    ends: Callable[[int], Failed | None] = lambda _: None
    at_submit: Callable[[EngineRequest], None] = lambda _: None
    requests: list[EngineRequest] = field(default_factory=list)
    running: int = 0
    most: int = 0
    started: int = 0
    stopped: int = 0
    ready: bool = True
    capacity: int = 8

    async def start(self) -> None:
        self.started += 1

    async def stop(self) -> None:
        self.stopped += 1

    def estimate(self, model: str, params: Params) -> float | None:
        return None

    def cancel(self, job_id: str) -> None:
        raise AssertionError("nobody cancels")

    async def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        self.requests.append(request)
        self.at_submit(request)
        end = self.ends(len(self.requests))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        yield ScriptedEngine.result(request) if end is None else end


@dataclass
class Setup:
    """A renderer in a folder of its own, and rows for it."""

    folder: Path
    engine: Engine
    work: WorkerConfig

    async def render(self, *rows: dict[str, Any], work: WorkerConfig | None = None) -> list[Result]:
        renderer = RowRenderer(work or self.work, lambda: self.engine)
        await renderer.start()
        lines = [Line(number, "unnamed", True, json.dumps(values)) for number, values in enumerate(rows, 1)]
        return await asyncio.gather(*(renderer.render(line) for line in lines))

    def files(self, folder: str) -> list[str]:
        where = self.folder / "out" / folder
        return sorted(path.name for path in where.iterdir()) if where.exists() else []


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    stills(tmp_path)
    work = WorkerConfig(str(tmp_path / "out"), reading(str(tmp_path)), EngineSettings(), in_flight=3, pause_s=0.001)
    return Setup(tmp_path, Engine(), work)


def named(name: str, **changes: Any) -> dict[str, Any]:
    return {**GOOD, "id": name, **changes}


async def test_a_row_leaves_a_video_a_thumbnail_and_then_its_record(setup: Setup) -> None:
    def marked(_: EngineRequest) -> None:
        assert json.loads((setup.folder / "out/attempts/a.json").read_bytes()) == {"run": setup.work.run, "lost": 1}

    setup.engine.at_submit = marked
    (result,) = await setup.render(named("a", seed=5))
    assert (result.status, result.seed, result.attempts, result.video) == ("completed", 5, 1, "videos/a.mp4")
    assert [setup.files(name) for name in ("videos", "thumbnails", "records", "failures", "attempts")] == [
        ["a.mp4"],
        ["a.jpg"],
        ["a.json"],
        [],
        [],
    ]
    assert parse((setup.folder / "out/records/a.json").read_bytes()) == result
    assert setup.engine.requests[0].images[0].startswith(b"\x89PNG")


async def test_a_complete_row_is_not_done_again(setup: Setup) -> None:
    (first,) = await setup.render(named("a"))
    again, other = await setup.render(named("a"), named("b"))
    assert replace(again, row=1) == first
    assert other.status == "completed"
    assert len(setup.engine.requests) == 2


async def test_another_row_under_the_same_id_is_refused_and_changes_nothing(setup: Setup) -> None:
    (first,) = await setup.render(named("a", seed=1))
    before = (setup.folder / "out/videos/a.mp4").read_bytes()
    (refused,) = await setup.render(named("a", seed=2))
    assert (refused.status, refused.error_code, refused.error_column) == ("failed", "id_taken", "id")
    assert (setup.folder / "out/videos/a.mp4").read_bytes() == before
    assert parse((setup.folder / "out/records/a.json").read_bytes()) == first


async def test_no_more_rows_are_in_work_than_allowed(setup: Setup) -> None:
    results = await setup.render(*(named(f"n{number}", seed=number) for number in range(20)))
    assert {result.status for result in results} == {"completed"}
    assert 1 < setup.engine.most <= 3


async def test_a_failed_row_is_tried_again_then_recorded_and_the_next_run_tries_it_again(setup: Setup) -> None:
    setup.engine.ends = lambda count: Failed("generation_failed", "no luck") if count <= 3 else None
    (result,) = await setup.render(named("a"))
    assert (result.status, result.error_code, result.attempts) == ("failed", "generation_failed", 3)
    assert parse((setup.folder / "out/failures/a.json").read_bytes()) == result
    assert setup.files("attempts") == setup.files("records") == []
    (result,) = await setup.render(named("a"))
    assert (result.status, result.attempts) == ("completed", 1)


async def test_a_second_try_that_works_is_enough(setup: Setup) -> None:
    setup.engine.ends = lambda count: Failed("out_of_memory", "too large") if count == 1 else None
    (result,) = await setup.render(named("a"))
    assert (result.status, result.attempts) == ("completed", 2)
    assert setup.files("failures") == []


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (named("a", image="none.jpg"), "picture_not_found"),
        (named("a", image="half.jpg"), "unreadable_image"),
        (named("a", fps=1000), "out_of_range"),
    ],
)
async def test_what_its_sender_must_mend_is_tried_once(setup: Setup, row: dict[str, Any], code: str) -> None:
    (result,) = await setup.render(row)
    assert (result.status, result.error_code) == ("failed", code)
    assert result.error_column in ("image", "fps")
    assert setup.engine.requests == []
    assert len(setup.files("failures")) == 1


async def test_a_place_that_does_not_answer_is_asked_again(setup: Setup) -> None:
    class Shaky(PictureReader):
        asked = 0

        def _fetch(self, reference: str) -> bytes:
            Shaky.asked += 1
            if Shaky.asked == 1:
                raise Unreachable("not now")
            return super()._fetch(reference)

    (result,) = await setup.render(named("a"), work=replace(setup.work, pictures=Shaky()))
    assert (result.status, result.attempts, Shaky.asked) == ("completed", 2, 2)


async def test_a_broken_engine_is_replaced(setup: Setup) -> None:
    setup.engine.ends = lambda count: Failed("engine_broken", "gone") if count == 1 else None
    (result,) = await setup.render(named("a"))
    assert result.status == "completed"
    assert (setup.engine.started, setup.engine.stopped) == (2, 1)


async def test_a_row_that_takes_its_workers_down_is_given_up(setup: Setup) -> None:
    """A worker that is lost leaves the mark of the attempt it was at, and comes back to the same row."""
    output = Output(setup.work.out)
    for count in range(1, LOSSES + 1):
        output.put("attempts/a.json", json.dumps({"run": setup.work.run, "lost": count}).encode())
        (result,) = await setup.render(named("a"))
        if count < LOSSES:
            assert (result.status, result.attempts) == ("completed", count + 1)
            (setup.folder / "out/records/a.json").unlink()
        else:
            assert (result.status, result.error_code) == ("failed", "worker_lost")
    output.put("attempts/a.json", json.dumps({"run": "an earlier run", "lost": 9}).encode())
    (result,) = await setup.render(named("a"))
    assert (result.status, result.attempts) == ("completed", 1)


async def test_of_two_workers_at_one_row_one_completes_it(setup: Setup) -> None:
    """The other had begun before the record was there, and keeps what it says."""
    other = Result(row=9, id="a", status="completed", sha256="theirs", content="x")

    def meanwhile(_: EngineRequest) -> None:
        Output(setup.work.out).put_once("records/a.json", other.as_json())

    setup.engine.at_submit = meanwhile
    (result,) = await setup.render(named("a"))
    assert result.sha256 == "theirs"
    assert parse((setup.folder / "out/records/a.json").read_bytes()) == other
    assert setup.files("videos") == []


async def test_a_surprise_ends_one_row_only(setup: Setup) -> None:
    def surprise(request: EngineRequest) -> None:
        if request.params.seed == 1:
            raise RuntimeError("unforeseen")

    setup.engine.at_submit = surprise
    bad, good = await setup.render(named("a", seed=1), named("b", seed=2))
    assert (bad.status, bad.error_code, good.status) == ("failed", "internal_error", "completed")
    assert bad.attempts == 3
    assert setup.files("failures") == ["a.json"]
    assert setup.files("attempts") == []


async def test_a_fault_found_in_reading_is_recorded(setup: Setup) -> None:
    renderer = RowRenderer(setup.work, lambda: setup.engine)
    result = await renderer.render(Line(4, "row-1", True, "{not json", "malformed_row", "no JSON"))
    assert (result.row, result.status, result.error_code) == (4, "failed", "malformed_row")
    assert setup.files("failures") == ["row-1.json"]


async def test_every_kind_of_bad_row_is_recorded_and_the_rest_is_rendered(setup: Setup) -> None:
    manifest = setup.folder / "manifest.jsonl"
    rows = write_bad_manifest(manifest)
    renderer = RowRenderer(replace(setup.work, retries=0), lambda: setup.engine)
    await renderer.start()
    lines = read_lines(open_render_list(str(manifest)), Portion(), setup.work.reading)
    results = await asyncio.gather(*(renderer.render(line) for line in lines))
    assert [result.row for result in results if result.status == "completed"] == [1, rows]
    assert [result.error_column for result in results[1:-1]] == [column for _, column in BAD_ROWS]
    assert all(result.error_code and result.error_message for result in results[1:-1])
    assert len(setup.files("failures")) == len(BAD_ROWS)
    assert setup.files("videos") == ["last.mp4", "twice.mp4"]


def test_unreachable_is_no_fault_of_the_row() -> None:
    assert issubclass(Unreachable, GenerationFailed)
