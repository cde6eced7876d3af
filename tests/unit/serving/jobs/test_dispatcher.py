"""The dispatcher with a scripted engine and a real database: leases lost and kept, checkpoints, a stop in good order.

The engine here follows a script of events; the real one meets the dispatcher in tests/e2e.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import update

from model.errors import InvalidRequest
from model.params import Params
from serving.engine.protocol import (
    TERMINAL,
    CancelledAt,
    Checkpointed,
    Completed,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Stepped,
)
from serving.jobs.artifacts import Artifacts
from serving.jobs.database import Database
from serving.jobs.dispatcher import QUEUE_TOPIC, Dispatcher
from serving.jobs.leases import Leases
from serving.jobs.notifier import Notifier
from serving.jobs.records import LeasedJob, Lifetimes, NewJob, ProgressUpdate
from serving.jobs.runner import CHECKPOINT_NAME
from serving.jobs.store import JobStore
from serving.jobs.tables import JobRow
from tests.support import shared_tables as shared_tables

PARAMS = {
    "num_frames": 5,
    "height": 64,
    "width": 96,
    "seed": 1,
    "fps": 7,
    "motion_bucket_id": 127,
    "noise_aug_strength": 0.02,
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 3.0,
    "num_inference_steps": 3,
    "solver": "euler",
    "schedule": "karras",
    "decode_chunk_size": 8,
    "resize_mode": "crop",
    "output_format": "mp4",
}
TERMS = Lifetimes(lease_s=1.5)


def job(job_id: str, priority: str = "normal", owner: str = "") -> NewJob:
    return NewJob(
        id=job_id,
        task="image-to-video",
        model="m",
        model_version="1",
        seed=1,
        params=PARAMS,
        total_steps=3,
        output_format="mp4",
        priority=priority,  # type: ignore[arg-type]
        metadata={},
        body_hash="h",
        owner=owner,
    )


def result() -> Completed:
    return Completed(b"video", "s", "f", b"thumb", b"sheet", 96, 64, 5, 7, False, {"seed": 1}, {"denoise": 0.1})


@dataclass
class Engine:
    """Each job takes three steps, a checkpoint after the second, and waits for `gate` before the third."""

    capacity: int = 4
    ready: bool = True
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    halted: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[EngineRequest] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    refuses_states: bool = False
    slow_to_cancel_s: float = 0.0
    in_flight: set[str] = field(default_factory=set)

    async def start(self) -> None:
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        self.halted.set()

    def estimate(self, model: str, params: Params) -> float | None:
        return None

    def cancel(self, job_id: str) -> None:
        self.cancelled.add(job_id)

    def submit(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        if request.job_id in self.in_flight:
            raise InvalidRequest(f"job {request.job_id} is already in flight", param="job_id")
        self.in_flight.add(request.job_id)
        self.cancelled.discard(request.job_id)
        return self._events(request)

    async def _events(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        async for event in self._script(request):
            if isinstance(event, TERMINAL):
                self.in_flight.discard(request.job_id)
            yield event

    async def _script(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        self.requests.append(request)
        yield PhaseStarted("encode")
        if self.refuses_states and request.resume_from is not None:
            yield Failed("invalid_value", "of another checkpoint")
            return
        for step in (1, 2):
            yield Stepped(step, 3, None)
        yield Checkpointed(2, b"after two steps")
        while not (self.gate.is_set() or self.halted.is_set() or request.job_id in self.cancelled):
            await asyncio.sleep(0.005)
        if request.job_id in self.cancelled:
            await asyncio.sleep(self.slow_to_cancel_s)
            yield CancelledAt(2, 0.2)
        elif self.halted.is_set() and not self.gate.is_set():
            yield Checkpointed(2, b"at the stop")
            yield Failed("engine_stopped", "stopped")
        else:
            yield Stepped(3, 3, 0.0)
            yield result()


@dataclass
class Server:
    """One server's parts over a shared folder."""

    folder: Path
    database: Database
    name: str = "one"
    engine: Engine = field(default_factory=Engine)

    def __post_init__(self) -> None:
        self.notifier = Notifier()
        self.artifacts = Artifacts.open(str(self.folder / "artifacts"))
        self.store = JobStore(self.database, terms=TERMS)
        self.leases = Leases(self.database, self.name, terms=TERMS)
        self.dispatcher = Dispatcher(self.engine, self.leases, self.artifacts, self.notifier, 0)

    def submit(self, job_id: str, priority: str = "normal", owner: str = "") -> None:
        for name in ("input.png",):
            self.artifacts.write(job_id, name, b"picture", "image/png")
        self.store.create(job(job_id, priority, owner), 100)
        self.notifier.notify(QUEUE_TOPIC)

    async def until(self, job_id: str, status: str) -> None:
        while self.store.get(job_id).status != status:
            await asyncio.sleep(0.01)

    async def until_checkpoint(self, job_id: str) -> None:
        while not self.artifacts.exists(job_id, CHECKPOINT_NAME):
            await asyncio.sleep(0.01)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    yield database
    database.close()


async def test_a_checkpoint_is_kept_while_a_job_runs_and_gone_at_its_end(tmp_path: Path, database: Database) -> None:
    server = Server(tmp_path, database)
    await server.dispatcher.start()
    server.submit("job_1")
    await server.until_checkpoint("job_1")
    server.engine.gate.set()
    await server.until("job_1", "completed")
    await server.dispatcher.stop()
    assert not server.artifacts.exists("job_1", CHECKPOINT_NAME)
    assert server.engine.requests[0].resume_from is None


async def test_a_killed_servers_job_goes_on_elsewhere_from_its_checkpoint(tmp_path: Path, database: Database) -> None:
    first, second = Server(tmp_path, database), Server(tmp_path, database, "two")
    await first.dispatcher.start()
    first.submit("job_1")
    await first.until_checkpoint("job_1")
    for task in [*first.dispatcher._loops, *first.dispatcher._following]:
        task.cancel()  # as if killed: nothing is given back
    second.engine.gate.set()
    await second.dispatcher.start()
    assert second.store.get("job_1").status == "in_progress"  # the lease still runs
    await second.until("job_1", "completed")
    await second.dispatcher.stop()
    assert [request.resume_from for request in second.engine.requests] == [b"after two steps"]
    assert (tmp_path / "artifacts" / "job_1" / "video.2.mp4").read_bytes() == b"video"


async def test_a_state_that_the_engine_refuses_is_dropped_and_the_job_begins_anew(
    tmp_path: Path, database: Database
) -> None:
    server = Server(tmp_path, database)
    server.submit("job_1")
    server.artifacts.write("job_1", CHECKPOINT_NAME, b"old", "application/vnd.safetensors")
    server.engine.refuses_states = True
    server.engine.gate.set()
    await server.dispatcher.start()
    await server.until("job_1", "completed")
    await server.dispatcher.stop()
    assert [request.resume_from for request in server.engine.requests] == [b"old", None]


async def test_a_paused_server_neither_completes_nor_alters_what_another_took(
    tmp_path: Path, database: Database
) -> None:
    first, second = Server(tmp_path, database), Server(tmp_path, database, "two")
    await first.dispatcher.start()
    first.submit("job_1")
    await first.until_checkpoint("job_1")
    for task in first.dispatcher._loops:  # it goes on working, but says no more that it lives
        task.cancel()
    await second.dispatcher.start()
    while not second.engine.requests:
        await asyncio.sleep(0.02)
    first.engine.gate.set()
    await asyncio.gather(*first.dispatcher._following)
    assert second.store.get("job_1").status == "in_progress"
    assert not (tmp_path / "artifacts" / "job_1" / "video.mp4").exists()  # nothing of the loser's result is left
    assert first.engine.cancelled == {"job_1"}
    second.engine.gate.set()
    await second.until("job_1", "completed")
    await second.dispatcher.stop()
    events, _ = second.store.events_after("job_1", 0)
    assert [event.event for event in events].count("completed") == 1


async def test_a_server_that_lost_a_lease_runs_the_job_again_once_its_engine_let_go(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may take longer than a lease: the job waits until the old run of it has left the engine."""
    server = Server(tmp_path, database)
    server.engine.slow_to_cancel_s = 0.5
    real, lost = server.leases.advance, False

    def lose_once(leased: LeasedJob, event: str, change: ProgressUpdate) -> None:
        nonlocal lost
        if change.step == 2 and not lost:
            lost = True
            with database.write() as session:
                session.execute(update(JobRow).where(JobRow.id == leased.id).values(lease_until=0.0))
            server.leases.reclaim()  # as another server does
        real(leased, event, change)

    monkeypatch.setattr(server.leases, "advance", lose_once)
    await server.dispatcher.start()
    server.submit("job_1")
    server.submit("job_2")
    async with asyncio.timeout(20):
        while len(server.engine.requests) < 3:
            await asyncio.sleep(0.01)
        server.engine.gate.set()
        for name in ("job_1", "job_2"):
            await server.until(name, "completed")
    await server.dispatcher.stop()
    assert [server.store.get(name).error for name in ("job_1", "job_2")] == [None, None]
    assert len(server.engine.requests) == 3


async def test_a_cancel_at_one_server_reaches_the_one_that_runs_the_job(tmp_path: Path, database: Database) -> None:
    runs, other = Server(tmp_path, database), Server(tmp_path, database, "two")
    await runs.dispatcher.start()
    runs.submit("job_1")
    await runs.until_checkpoint("job_1")
    other.store.cancel("job_1")
    other.dispatcher.cancel("job_1")
    await other.until("job_1", "cancelled")
    assert runs.engine.cancelled == {"job_1"}
    await runs.dispatcher.stop()


async def test_draining_takes_nothing_new_and_waits_for_what_runs(tmp_path: Path, database: Database) -> None:
    server = Server(tmp_path, database)
    await server.dispatcher.start()
    server.submit("job_1")
    await server.until_checkpoint("job_1")
    draining = asyncio.create_task(server.dispatcher.drain(30))
    await asyncio.sleep(0)
    server.submit("job_2")
    await asyncio.sleep(0.1)
    assert not draining.done()
    assert server.dispatcher.draining
    server.engine.gate.set()
    await draining
    await server.dispatcher.stop()
    assert [server.store.get(name).status for name in ("job_1", "job_2")] == ["completed", "queued"]


async def test_what_is_left_after_the_grace_time_is_checkpointed_and_waits(tmp_path: Path, database: Database) -> None:
    server = Server(tmp_path, database)
    await server.dispatcher.start()
    server.submit("job_1")
    await server.until_checkpoint("job_1")
    await server.dispatcher.drain(0.05)
    await server.engine.stop()
    await server.dispatcher.stop()
    assert server.store.get("job_1").status == "queued"
    assert server.artifacts.read("job_1", CHECKPOINT_NAME) == b"at the stop"
    again = Server(tmp_path, database, "two")
    again.engine.gate.set()
    await again.dispatcher.start()
    await again.until("job_1", "completed")
    await again.dispatcher.stop()
    assert again.engine.requests[0].resume_from == b"at the stop"


async def test_offline_jobs_fill_idle_places_and_keep_none(tmp_path: Path, database: Database) -> None:
    server = Server(tmp_path, database, engine=Engine(capacity=2))
    await server.dispatcher.start()
    for number in range(3):
        server.submit(f"job_off_{number}", "offline")
    await server.until("job_off_1", "in_progress")
    server.submit("job_now")
    while len(server.engine.requests) < 3:
        await asyncio.sleep(0.01)
    assert server.store.get("job_off_2").status == "queued"
    shares = {request.job_id: request.share.priority for request in server.engine.requests}
    assert shares == {"job_off_0": "offline", "job_off_1": "offline", "job_now": "normal"}
    await server.engine.stop()
    await server.dispatcher.stop()
