"""The engine's promises, on a tiny random model: shared calls, identity, cancel, containment, honest endings."""

from __future__ import annotations

import asyncio
import platform
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.catalog import ModelEntry
from model.denoiser import DenoiserInputs
from model.errors import CheckpointError, InvalidRequest
from model.presets import NoiseRange, preset
from model.shapes import even_chunks
from model.tasks import task
from model.testing import build_random
from serving.engine.inprocess import InProcessEngine
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.local import generate
from serving.engine.loop import StepLoop
from serving.engine.protocol import (
    CancelledAt,
    Completed,
    Decoded,
    EngineEvent,
    EngineRequest,
    Failed,
    PhaseStarted,
    Queued,
    Stepped,
)
from serving.engine.settings import EngineSettings
from serving.engine.stats import EngineStats

ON_CPU = EngineSettings(device="cpu", warm_up=False, max_batch=8, checkpoint_every_s=None)

pytestmark = pytest.mark.timeout(600)  # seconds on a quiet machine


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    # Few coarse Heun steps from sigma 700 with an untrained network end far from unit variance: 1e-5 would mean less.
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0))
    return build_random(folder, sized, task("image-to-video"), seed=5)


@pytest.fixture(scope="module")
def model(entry: ModelEntry) -> LoadedModel:
    return load_model(entry, ON_CPU)


@pytest.fixture(scope="module")
def picture() -> bytes:
    out = BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


@dataclass
class Desk:
    """Runs a StepLoop over requests submitted beforehand, so that which rows meet is certain."""

    model: LoadedModel
    picture: bytes
    settings: EngineSettings = ON_CPU
    events: dict[str, list[EngineEvent]] = field(default_factory=lambda: defaultdict(list))
    on_event: Callable[[StepLoop, str, EngineEvent], None] = lambda *_: None

    def request(self, job_id: str, **asked: object) -> EngineRequest:
        seed = sum(job_id.encode())
        return EngineRequest(job_id, "tiny", self.model.entry.resolve(asked, seed), (self.picture,), "mp4")

    def run(self, *requests: EngineRequest) -> EngineStats:
        loop = StepLoop({"tiny": self.model}, self.settings)
        pending = {request.job_id for request in requests}

        def deliverer(job_id: str) -> Callable[[EngineEvent], None]:
            def deliver(event: EngineEvent) -> None:
                self.events[job_id].append(event)
                if isinstance(event, Completed | Failed | CancelledAt):
                    pending.discard(job_id)
                    if not pending:
                        loop.stop()
                self.on_event(loop, job_id, event)

            return deliver

        for request in requests:
            loop.submit(request, deliverer(request.job_id))
        loop.run()
        return loop.stats()

    def last(self, job_id: str) -> EngineEvent:
        return self.events[job_id][-1]


@pytest.fixture
def desk(model: LoadedModel, picture: bytes) -> Desk:
    return Desk(model, picture)


@pytest.fixture
def decoded_latents(model: LoadedModel) -> Iterator[list[Tensor]]:
    """What reaches the decoder, chunk by chunk."""
    seen: list[Tensor] = []
    handle = model.checkpoint.vae.decoder.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args[0] if args else kwargs["sample"]).clone()), with_kwargs=True
    )
    yield seen
    handle.remove()


MIXED = {
    "a": {"num_inference_steps": 9},
    "b": {"num_inference_steps": 6, "motion_bucket_id": 20, "max_guidance_scale": 1.0},
    "c": {"num_inference_steps": 6, "solver": "heun", "fps": 24},
    "d": {"num_inference_steps": 7, "solver": "heun", "noise_aug_strength": 0.4, "min_guidance_scale": 2.5},
}
EVALUATIONS = {"a": 9, "b": 6, "c": 11, "d": 13}


def test_four_different_requests_share_calls_and_equal_their_solo_runs(
    desk: Desk, model: LoadedModel, picture: bytes, decoded_latents: list[Tensor]
) -> None:
    together: dict[str, list[Tensor]] = defaultdict(list)

    def keep(_loop: StepLoop, job_id: str, event: EngineEvent) -> None:
        if isinstance(event, Decoded):  # delivered right after its chunk went through the decoder
            together[job_id].append(decoded_latents[-1] * model.checkpoint.scaling_factor)

    desk.on_event = keep
    stats = desk.run(*(desk.request(job_id, **asked) for job_id, asked in MIXED.items()))

    assert stats.denoiser_calls == max(EVALUATIONS.values())
    assert stats.rows_stepped == sum(EVALUATIONS.values())
    assert stats.rows_per_call == {4: 6, 3: 3, 2: 2, 1: 2}
    assert stats.batch_slots == sum(n * (1 if job_id == "b" else 2) for job_id, n in EVALUATIONS.items())
    assert (stats.completed, stats.failed, stats.cancelled) == (4, 0, 0)
    for job_id, asked in MIXED.items():
        solo = generate(model, desk.request(job_id, **asked).params, (picture,))
        done = desk.last(job_id)
        assert isinstance(done, Completed)
        assert (torch.cat(together[job_id]) - solo.latents).abs().max() < 1e-5
        assert done.manifest == solo.completed.manifest


@pytest.mark.slow
def test_one_by_one_makes_as_many_calls_as_evaluations(desk: Desk) -> None:
    desk.settings = replace(ON_CPU, max_batch=1)
    stats = desk.run(*(desk.request(job_id, **asked) for job_id, asked in MIXED.items()))
    assert stats.denoiser_calls == sum(EVALUATIONS.values())
    assert stats.completed == 4


def test_events_come_in_order_and_progress_is_real(desk: Desk) -> None:
    desk.run(desk.request("a", num_inference_steps=3, decode_chunk_size=2))
    events = desk.events["a"]
    assert [type(event).__name__ for event in events] == [
        "Queued", "PhaseStarted", "PhaseStarted", "Stepped", "Stepped", "Stepped",
        "PhaseStarted", "Decoded", "Decoded", "Decoded", "PhaseStarted", "Completed",
    ]  # fmt: skip
    assert [event.phase for event in events if isinstance(event, PhaseStarted)] == [
        "encode",
        "denoise",
        "decode",
        "mux",
    ]
    steps = [event for event in events if isinstance(event, Stepped)]
    assert [(event.step, event.total) for event in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(event.eta_s is not None and event.eta_s >= 0 for event in steps)
    assert [event.frames for event in events if isinstance(event, Decoded)] == [2, 4, 6]
    done = events[-1]
    assert isinstance(done, Completed)
    assert set(done.timings) == {"queued", "encode", "denoise", "decode", "mux"}
    assert done.manifest["decode_chunks"] == list(even_chunks(6, 2))
    engine = {"host": platform.node(), "device": "cpu", "device_name": "cpu"}
    assert done.manifest["engine"] == engine
    assert done.manifest["model_version"] == desk.model.entry.version
    assert (done.width, done.height, done.num_frames, done.fps) == (64, 64, 6, 7)


def test_cancel_stops_at_the_step_boundary_and_counts_what_was_used(desk: Desk) -> None:
    def cancel_after_two(loop: StepLoop, job_id: str, event: EngineEvent) -> None:
        if job_id == "a" and isinstance(event, Stepped) and event.step == 2:
            loop.cancel("a")

    desk.on_event = cancel_after_two
    stats = desk.run(desk.request("a", num_inference_steps=50), desk.request("b", num_inference_steps=4))
    ended = desk.last("a")
    assert isinstance(ended, CancelledAt)
    assert ended.step == 2
    assert ended.compute_s > 0
    assert stats.rows_per_call == {2: 2, 1: 2}
    assert isinstance(desk.last("b"), Completed)


def test_a_waiting_job_is_cancelled_without_computing(desk: Desk) -> None:
    desk.settings = replace(ON_CPU, max_rows=1)

    def cancel_waiting(loop: StepLoop, job_id: str, event: EngineEvent) -> None:
        if job_id == "a" and isinstance(event, PhaseStarted):
            loop.cancel("b")

    desk.on_event = cancel_waiting
    desk.run(*(desk.request(job_id, num_inference_steps=2) for job_id in "abc"))
    assert desk.last("b") == CancelledAt(0, 0.0)
    positions = [event.position for event in desk.events["c"] if isinstance(event, Queued)]
    assert positions[:2] == [2, 1]
    assert isinstance(desk.last("c"), Completed)


@dataclass
class Touchy:
    """A denoiser that fails any call with a row of motion bucket 66 in it, or of more than `most` places."""

    inner: Callable[[DenoiserInputs], Tensor]
    error: Exception
    most: int = 99

    def __call__(self, inputs: DenoiserInputs) -> Tensor:
        if bool((inputs.vector[:, 1] == 66).any()) or inputs.batch_size > self.most:
            raise self.error
        return self.inner(inputs)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("bad kernel"), "generation_failed"),
        pytest.param(MemoryError(), "out_of_memory", marks=pytest.mark.slow),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", marks=pytest.mark.slow),
        pytest.param(InvalidRequest("not that", code="odd"), "odd", marks=pytest.mark.slow),
        pytest.param(KeyError("a bug"), "internal_error", marks=pytest.mark.slow),
    ],
)
def test_a_failing_row_fails_alone(desk: Desk, picture: bytes, error: Exception, code: str) -> None:
    sound = desk.model
    desk.model = replace(sound, denoiser=Touchy(sound.denoiser, error))
    desk.run(
        desk.request("a", num_inference_steps=2),
        desk.request("b", num_inference_steps=2, motion_bucket_id=66),
        desk.request("c", num_inference_steps=2),
    )
    failure = desk.last("b")
    assert isinstance(failure, Failed)
    assert failure.code == code
    assert failure.message
    solo = generate(sound, desk.request("a", num_inference_steps=2).params, (picture,))
    done = desk.last("a")
    assert isinstance(done, Completed)
    assert done.frames_sha256 == solo.completed.frames_sha256
    assert isinstance(desk.last("c"), Completed)


@pytest.mark.slow
def test_a_batch_too_large_for_memory_is_split(desk: Desk) -> None:
    desk.model = replace(desk.model, denoiser=Touchy(desk.model.denoiser, MemoryError(), most=2))
    stats = desk.run(*(desk.request(job_id, num_inference_steps=2) for job_id in "abc"))
    assert stats.completed == 3
    assert stats.rows_per_call == {1: 6}


@pytest.mark.parametrize(
    ("change", "code"), [({"images": (b"GIF89a",)}, "unreadable_image"), ({"model": "x"}, "invalid_value")]
)
def test_what_is_wrong_with_a_request_is_a_failed_event(desk: Desk, change: dict[str, object], code: str) -> None:
    bad = replace(desk.request("a"), **change)  # type: ignore[arg-type]
    desk.run(bad, desk.request("b", num_inference_steps=1))
    failure = desk.last("a")
    assert isinstance(failure, Failed)
    assert failure.code == code
    assert isinstance(desk.last("b"), Completed)


def test_latents_that_overflow_are_an_error_not_a_black_video(desk: Desk) -> None:
    desk.model = replace(desk.model, denoiser=lambda inputs: inputs.latents * float("nan"))
    desk.run(desk.request("a", num_inference_steps=1))
    failure = desk.last("a")
    assert isinstance(failure, Failed)
    assert failure.code == "not_finite"


def test_a_broken_loop_ends_every_job(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.settings = replace(ON_CPU, max_rows=1)

    def break_down(_loop: StepLoop, job_id: str, event: EngineEvent) -> None:
        if job_id == "c" and event == Queued(1):
            raise LookupError("a bug in the loop itself")

    desk.on_event = break_down
    desk.run(*(desk.request(job_id, num_inference_steps=2) for job_id in "abc"))
    for job_id in "abc":
        failure = desk.last(job_id)
        assert isinstance(failure, Failed)
        assert failure.code == "engine_broken"
    assert "a bug in the loop itself" in caplog.text


def test_a_device_that_failed_for_good_stops_the_engine_so_that_jobs_resume_elsewhere(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """Not row by row on a dead device, and not as failures of the jobs: they end as stopped, which a queue retries."""
    sound, calls = desk.model.denoiser, []

    def dying(inputs: DenoiserInputs) -> Tensor:
        calls.append(inputs.batch_size)
        if len(calls) > 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ...")
        return sound(inputs)

    desk.model = replace(desk.model, denoiser=dying)
    desk.run(*(desk.request(job_id, num_inference_steps=4) for job_id in "abc"))
    for job_id in "abc":
        failure = desk.last(job_id)
        assert isinstance(failure, Failed)
        assert failure.code == "engine_stopped"
        assert "illegal memory access" in failure.message
    assert len(calls) == 3
    assert "the engine's loop broke" in caplog.text


def test_generate_repeats_bit_for_bit_and_another_seed_differs(model: LoadedModel, picture: bytes) -> None:
    params = model.entry.resolve({"num_inference_steps": 2}, seed=7)
    told: list[EngineEvent] = []
    first = generate(model, params, (picture,), progress=told.append)
    again = generate(model, params, (picture,))
    other = generate(model, replace(params, seed=8), (picture,))
    assert first.completed.frames_sha256 == again.completed.frames_sha256
    assert np.array_equal(first.frames, again.frames)
    assert other.completed.frames_sha256 != first.completed.frames_sha256
    assert [event.step for event in told if isinstance(event, Stepped)] == [1, 2]
    assert first.frames.shape == (6, 64, 64, 3)


# The asyncio face


def ask(entry: ModelEntry, picture: bytes, job_id: str, **asked: object) -> EngineRequest:
    return EngineRequest(job_id, entry.name, entry.resolve(asked, seed=3), (picture,), "mp4")


async def collect(engine: InProcessEngine, request: EngineRequest) -> list[EngineEvent]:
    return [event async for event in engine.submit(request)]


async def test_serves_concurrent_streams_and_stops(entry: ModelEntry, picture: bytes) -> None:
    engine = InProcessEngine([entry], EngineSettings(device="cpu", threads=1, max_batch=8))
    assert not engine.ready
    await engine.start()
    assert engine.ready
    assert engine.capacity == 16
    streams = await asyncio.gather(
        *(collect(engine, ask(entry, picture, f"job-{n}", num_inference_steps=n)) for n in (2, 3, 4))
    )
    for events, steps in zip(streams, (2, 3, 4), strict=True):
        assert sum(isinstance(event, Stepped) for event in events) == steps
        done = events[-1]
        assert isinstance(done, Completed)
        assert done.manifest["threads"] == 1
    stats = engine.stats()
    assert stats is not None
    assert stats.denoiser_calls < 9
    assert (stats.waiting, stats.active) == (0, 0)
    await engine.stop()
    assert not engine.ready
    assert [type(event) for event in await collect(engine, ask(entry, picture, "late"))] == [Failed]


async def test_cancel_abandoning_a_stream_and_stopping_end_jobs(entry: ModelEntry, picture: bytes) -> None:
    engine = InProcessEngine([entry], ON_CPU)
    await engine.start()
    long = {"num_inference_steps": 200}
    cancelled, abandoned, running = (engine.submit(ask(entry, picture, name, **long)) for name in "xyz")
    async for event in abandoned:
        if isinstance(event, Stepped):
            break
    await abandoned.aclose()  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequest, match="already in flight"):
        engine.submit(ask(entry, picture, "x"))
    engine.cancel("x")
    engine.cancel("no such job")
    assert isinstance([event async for event in cancelled][-1], CancelledAt)
    while (stats := engine.stats()) is not None and stats.active > 1:
        await asyncio.sleep(0.02)
    assert stats is not None
    assert stats.cancelled == 2
    await engine.stop()
    ended = [event async for event in running][-1]
    assert isinstance(ended, Failed)
    assert ended.code == "engine_stopped"
    assert "stillmotion-engine" not in {thread.name for thread in threading.enumerate()}


async def test_a_checkpoint_that_does_not_load_is_told_by_start(entry: ModelEntry, tmp_path: Path) -> None:
    engine = InProcessEngine([replace(entry, path=tmp_path)], ON_CPU)
    with pytest.raises(CheckpointError):
        await engine.start()
    assert not engine.ready
    await engine.stop()
