"""Chained interpolation with real networks: against the two steps made by hand, cancelled, interrupted, replayed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from stillmotion.types import Job, JobEvent

from model.catalog import ModelEntry
from model.checkpoint import load
from model.interpolation import plan_interpolation
from model.media.video import decode_video, frames_sha256
from model.presets import NoiseRange, preset
from model.stages import Stages
from model.tasks import task
from model.testing import build_random
from serving.engine.inprocess import InProcessEngine
from serving.engine.loaded_model import load_model
from serving.engine.local import generate
from serving.engine.protocol import (
    CancelledAt,
    Checkpointed,
    Completed,
    EngineEvent,
    EngineRequest,
    PhaseStarted,
    Stepped,
)
from serving.engine.settings import EngineSettings
from serving.gateway import Settings, create_app
from serving.interpolation.engine import ChainedEngine
from serving.jobs.artifacts import Artifacts
from serving.provenance.replay import read_recipe, replay
from tests.support.loras import drawn_lora

EXACT = EngineSettings(device="cpu", warm_up=False, deterministic=True, threads=1, max_batch=8, checkpoint_every_s=0.0)
SEED = 11
STEPS, PAIR_STEPS, PAIRS = 2, 3, 2
FRAMES = 4 * PAIRS + 1

pytestmark = pytest.mark.timeout(600)  # seconds on a quiet machine


@dataclass(frozen=True)
class Models:
    still: ModelEntry
    between: ModelEntry


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0), height=32, width=48)
    still = build_random(folder / "still", sized, task("image-to-video"), seed=5, num_frames=PAIRS + 1)
    between = build_random(folder / "between", sized, task("frame-interpolation"), seed=6, num_frames=5)
    return Models(still, with_steps(between, PAIR_STEPS))


def with_steps(entry: ModelEntry, steps: int) -> ModelEntry:
    return replace(entry, defaults={**entry.defaults, "num_inference_steps": steps})


def png(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def picture() -> bytes:
    return png(np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8))


def made_by_hand(models: Models, picture: bytes, **asked: Any) -> np.ndarray:
    """Image-to-video, then frame interpolation of each pair with the documented seed, put together one by one."""
    first = generate(models.still, still_params(models, **asked), (picture,), settings=EXACT).frames
    whole = np.zeros((FRAMES, *first.shape[1:]), np.uint8)
    model = load_model(models.between, EXACT)
    for index in range(PAIRS):
        seed = int(hashlib.sha256(f"{SEED}/{index}".encode()).hexdigest()[:8], 16)
        params = models.between.resolve({"height": 32, "width": 48, "fps": 28}, seed)
        made = generate(model, params, (png(first[index]), png(first[index + 1]))).frames
        assert len(made) == 5
        whole[4 * index] = first[index]
        whole[4 * index + 1 : 4 * index + 4] = made[1:4]
    whole[-1] = first[-1]
    assert whole.std() > 1, "a constant video would prove nothing"
    return whole


@pytest.fixture(scope="module")
def by_hand(models: Models, picture: bytes) -> np.ndarray:
    return made_by_hand(models, picture)


def still_params(models: Models, **asked: Any) -> Any:
    return models.still.resolve({"num_inference_steps": STEPS, **asked}, SEED)


@dataclass
class Service:
    client: httpx2.AsyncClient
    engine: InProcessEngine
    artifacts: Path

    async def events(self, job: Job) -> AsyncIterator[JobEvent]:
        async with self.client.stream("GET", job.urls.events) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield JobEvent.model_validate_json(line.removeprefix("data: "))

    async def submit(self, picture: bytes, **fields: Any) -> Job:
        told = {name: str(value) for name, value in fields.items()}
        files = {"image": ("still.png", picture, "image/png")}
        answer = await self.client.post("/generate/image-to-video", files=files, data=told)
        assert answer.status_code == 202, answer.text
        return Job.model_validate(answer.json())


@asynccontextmanager
async def service(models: Models, folder: Path) -> AsyncIterator[Service]:
    engine = InProcessEngine((models.still, models.between), EXACT)
    places = {"database_url": f"sqlite:///{folder}/jobs.db", "artifacts": str(folder / "artifacts")}
    settings = Settings(**places, progress_interval_s=0)  # type: ignore[arg-type]
    app = create_app(engine, (models.still, models.between), settings)
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client,
    ):
        yield Service(client, engine, folder / "artifacts")


@pytest.mark.slow
async def test_a_chained_job_is_the_two_steps_made_by_hand(
    models: Models, picture: bytes, by_hand: np.ndarray, tmp_path: Path
) -> None:
    async with service(models, tmp_path) as running:
        job = await running.submit(picture, seed=SEED, num_inference_steps=STEPS, interpolate="true")
        assert job.total_steps == STEPS + PAIRS * PAIR_STEPS
        told = [event async for event in running.events(job)]
        done = told[-1].job
        content = (await running.client.get(done.urls.content)).content
        manifest = (await running.client.get(done.urls.content, params={"variant": "manifest"})).json()
        together = running.engine.stats().rows_per_call
    assert (done.status, done.output is None) == ("completed", False), done.error
    assert done.output is not None
    assert done.output.frames_sha256 == frames_sha256(by_hand)
    assert (done.output.num_frames, done.output.fps) == (FRAMES, 28)
    frames, fps = decode_video(content)
    assert (len(frames), fps) == (FRAMES, 28)

    progress = [event.job.progress for event in told]
    assert progress == sorted(progress)
    assert progress[-1] == 100
    phases = list(dict.fromkeys(event.job.phase for event in told))
    assert phases == ["queued", "encode", "denoise", "decode", "interpolate", "mux"]
    steps = [event.job.step for event in told if event.event == "step"]
    assert steps == list(range(1, job.total_steps + 1))
    shares = [event.job.progress for event in told if event.job.phase == "interpolate"]
    assert shares[0] < 50 < shares[-1], "most of the work is the second stage's"

    assert max(together) == PAIRS, "rows of pairs share calls"
    assert done.params["interpolate"]["model"] == manifest["interpolate"]["model"] == "between"
    versions = (done.model_version, manifest["interpolate"]["model_version"])
    assert versions == (models.still.version, models.between.version)
    assert [pair["seed"] for pair in manifest["interpolate"]["pairs"]] == [
        int(hashlib.sha256(f"{SEED}/{index}".encode()).hexdigest()[:8], 16) for index in range(PAIRS)
    ]
    assert {"denoise", "interpolate", "mux"} <= done.timings.keys()
    left = {path.name.partition(".")[0] for path in (tmp_path / "artifacts").rglob("*.*")}
    assert left == {"input", "video", "thumbnail", "frames", "manifest"}

    recipe = read_recipe(json.loads(json.dumps(manifest)))
    local: list[EngineEvent] = []
    again = replay(recipe, models.still, manifest, models={"interpolate": models.between}, progress=local.append)
    assert again.identical
    assert np.array_equal(again.generated.frames, by_hand)
    second = local[local.index(PhaseStarted("interpolate")) :]
    assert [event.step for event in second if isinstance(event, Stepped)] == list(range(1, PAIRS * PAIR_STEPS + 1))


@pytest.mark.slow
async def test_a_lora_is_of_the_first_stage(
    models: Models, picture: bytes, by_hand: np.ndarray, tmp_path: Path
) -> None:
    pan = drawn_lora(tmp_path / "pan.safetensors", load(models.still).unet, seed=3)
    offered = replace(models, still=replace(models.still, loras=(pan,)))
    asked = {"lora": "pan", "lora_scale": 0.5}
    async with service(offered, tmp_path) as running:
        job = await running.submit(picture, seed=SEED, num_inference_steps=STEPS, interpolate="true", **asked)
        done = [event async for event in running.events(job)][-1].job
        manifest = (await running.client.get(done.urls.content, params={"variant": "manifest"})).json()
    assert done.output is not None, done.error
    expected = made_by_hand(offered, picture, **asked)
    assert done.output.frames_sha256 == frames_sha256(expected) != frames_sha256(by_hand)
    assert replay(read_recipe(manifest), offered.still, manifest, models={"interpolate": models.between}).identical


def chained(models: Models, picture: bytes, steps: int = PAIR_STEPS) -> EngineRequest:
    """A chained request, whose pairs take so many steps."""
    params = still_params(models)
    chain = plan_interpolation(with_steps(models.between, steps), params)
    return EngineRequest("job", "still", params, (picture,), "mp4", stages=Stages(interpolate=chain))


@asynccontextmanager
async def engines(models: Models, folder: Path) -> AsyncIterator[tuple[ChainedEngine, InProcessEngine]]:
    both = (models.still, models.between)
    inner = InProcessEngine(both, EXACT)
    await inner.start()
    try:
        yield ChainedEngine(inner, Artifacts.open(str(folder)), both), inner
    finally:
        await inner.stop()


@pytest.mark.slow
async def test_cancel_in_the_second_stage_stops_every_pair(models: Models, picture: bytes, tmp_path: Path) -> None:
    async with engines(models, tmp_path) as (engine, inner):
        phase = ""
        async for event in engine.submit(chained(models, picture, steps=200)):
            if isinstance(event, PhaseStarted):
                phase = event.phase
            elif isinstance(event, Stepped) and phase == "interpolate":
                engine.cancel("job")
        stats = inner.stats()
        assert isinstance(event, CancelledAt), event
        assert STEPS < event.step < STEPS + PAIRS * 200
        assert event.compute_s > 0
        assert (stats.active, stats.waiting) == (0, 0)
        assert stats.cancelled == PAIRS, "each pair was stopped, none finished"


@pytest.mark.slow
async def test_what_is_interrupted_goes_on_from_what_was_kept(
    models: Models, picture: bytes, by_hand: np.ndarray, tmp_path: Path
) -> None:
    """Given up without a word in the second stage, then run by an engine that knows only the files."""
    async with engines(models, tmp_path) as (engine, _):
        phase = ""
        async with aclosing(engine.submit(chained(models, picture))) as events:  # type: ignore[type-var]
            async for event in events:
                phase = event.phase if isinstance(event, PhaseStarted) else phase
                if isinstance(event, Stepped) and phase == "interpolate" and event.step == 3:
                    break
    kept = {path.name for path in (tmp_path / "job").iterdir()}
    assert "stage.kept" in kept
    assert any(name.endswith(".state") for name in kept)
    async with engines(models, tmp_path) as (engine, inner):
        told = [event async for event in engine.submit(chained(models, picture))]
        stats = inner.stats()
    assert [event.phase for event in told if isinstance(event, PhaseStarted)] == ["interpolate", "mux"]
    assert not any(isinstance(event, Checkpointed) for event in told)
    first = next(event for event in told if isinstance(event, Stepped))
    assert first.step > 1, "some steps were found, not made"
    assert sum(rows * calls for rows, calls in stats.rows_per_call.items()) < PAIRS * PAIR_STEPS
    done = told[-1]
    assert isinstance(done, Completed)
    assert done.frames_sha256 == frames_sha256(by_hand)
