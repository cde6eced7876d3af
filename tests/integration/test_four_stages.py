"""Jobs of four stages with real networks: cancelled in each, and as rows of a batch, over HTTP and offline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stillmotion.types import Batch, BatchResult

from model.catalog import ModelEntry
from model.interpolation import plan_interpolation
from model.media.video import probe
from model.stages import NAMES, Stages, UpscaleStage, plan_extension
from serving.engine.inprocess import InProcessEngine
from serving.engine.protocol import CancelledAt, Completed, EngineRequest, PhaseStarted, Stepped
from serving.interpolation.local import generate_stages
from serving.offline.manifest import Line
from serving.offline.rows import RowContext
from serving.offline.worker import RowRenderer, WorkerConfig
from tests.integration.test_chained import EXACT, SEED, STEPS, Models, engines, models, picture, service, still_params
from tests.unit.serving.offline.support import reading

__all__ = ["models", "picture"]  # fixtures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FRAMES, MANY = 5, 200
FIELDS: dict[str, Any] = {"num_frames": FRAMES, "num_inference_steps": STEPS, "interpolate": True, "upscale": 2}


def all_stages(models: Models, params: Any) -> Stages:
    return Stages(
        plan_extension(models.still, params, FRAMES), plan_interpolation(models.between, params), UpscaleStage(2)
    )


def request(models: Models, picture: bytes, long: str) -> EngineRequest:
    """A job of four stages, of which one has so many steps that it would not end by itself."""
    params = still_params(models)
    stages = all_stages(models, params)
    assert stages.extend is not None
    assert stages.interpolate is not None
    if long == "generate":
        params = replace(params, num_inference_steps=MANY)
    elif long == "extend":
        window = replace(stages.extend.params, num_inference_steps=MANY)
        stages = replace(stages, extend=replace(stages.extend, params=window))
    elif long == "interpolate":
        pair = replace(stages.interpolate.params, num_inference_steps=MANY)
        stages = replace(stages, interpolate=replace(stages.interpolate, params=pair))
    return EngineRequest("job", "still", params, (picture,), "mp4", stages=stages)


@pytest.mark.parametrize("stage", ["generate", *NAMES])
async def test_cancel_in_each_stage_frees_the_compute_within_a_step(
    models: Models, picture: bytes, tmp_path: Path, stage: str
) -> None:
    job = request(models, picture, stage)
    before = 0 if stage == "generate" else STEPS
    for name, steps in job.stages.steps(job.params).items():
        if name == stage:
            break
        before += 0 if stage == "generate" else steps
    async with engines(models, tmp_path) as (engine, inner):
        phase, calls = "", -1
        async for event in engine.submit(job):
            phase = event.phase if isinstance(event, PhaseStarted) else phase
            if isinstance(event, Stepped) and calls < 0 and phase == ("denoise" if stage == "generate" else stage):
                calls = inner.stats().denoiser_calls
                engine.cancel("job")
        assert isinstance(event, CancelledAt), event
        assert before < event.step < before + MANY
        assert event.compute_s > 0
        stats = inner.stats()
        assert stats.denoiser_calls - calls <= 2, "the one in work, and one begun while it was asked"
        assert (stats.active, stats.waiting) == (0, 0)
        if stage == "upscale":
            assert event.step == before + 1, "no further frame"
        next_one = replace(job, job_id="next", params=still_params(models), stages=Stages())
        ends = [event async for event in engine.submit(next_one)]
        assert isinstance(ends[-1], Completed), "the engine serves on"


def rendered_here(models: Models, picture: bytes) -> str:
    """The frames' hash of the same request, made stage by stage in this thread."""
    params = still_params(models)
    engines = {"extend": models.still, "interpolate": models.between}
    settings = dict.fromkeys(("generate", *NAMES), EXACT)
    made = generate_stages(models.still, params, (picture,), all_stages(models, params), engines, settings=settings)
    return made.completed.frames_sha256


async def test_rows_of_a_batch_have_every_stage(models: Models, picture: bytes, tmp_path: Path) -> None:
    async with service(models, tmp_path) as running:
        upload = (await running.client.post("/uploads", content=picture)).json()["id"]
        body = {"image": {"upload": upload}, "seed": SEED, **FIELDS}
        plain = {"image": {"upload": upload}, "seed": SEED, "num_inference_steps": STEPS}
        lines = [
            {"custom_id": name, "url": "/generate/image-to-video", "body": one}
            for name, one in (("all", body), ("plain", plain), ("again", body))
        ]
        answer = await running.client.post(
            "/batches", content="\n".join(map(json.dumps, lines)), headers={"Content-Type": "application/jsonl"}
        )
        assert answer.status_code == 202, answer.text
        batch = Batch.model_validate(answer.json())
        for job in (await running.client.get("/jobs")).json()["data"]:
            await running.client.get(job["urls"]["events"])  # a stream, to the job's end
        text = (await running.client.get(batch.urls.results)).text
    results = [BatchResult.model_validate_json(line) for line in text.splitlines()]
    outputs = {one.custom_id: one.job.output for one in results}
    hashes = {name: None if output is None else output.frames_sha256 for name, output in outputs.items()}
    assert hashes["all"] == hashes["again"] == rendered_here(models, picture) != hashes["plain"]
    made = outputs["all"]
    assert made is not None
    assert (made.num_frames, made.fps, made.width, made.height) == (4 * (FRAMES - 1) + 1, 28, 96, 64)


async def test_rows_of_an_offline_rendering_have_every_stage(models: Models, picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "still.png").write_bytes(picture)
    entries: tuple[ModelEntry, ...] = (models.still, models.between)
    context: RowContext = replace(reading(), entries=entries, base=str(tmp_path))
    config = WorkerConfig(str(tmp_path / "out"), context, EXACT, in_flight=2)
    renderer = RowRenderer(config, lambda: InProcessEngine(entries, EXACT))
    await renderer.start()
    try:
        row = {"image": "still.png", "id": "all", "seed": SEED, **FIELDS}
        result = await renderer.render(Line(1, "all", True, json.dumps(row)))
    finally:
        await renderer.stop()
    assert result.status == "completed", result
    assert result.frames_sha256 == rendered_here(models, picture)
    told = probe(tmp_path / "out" / result.video)
    assert (told.frames, told.width) == (4 * (FRAMES - 1) + 1, 96)
