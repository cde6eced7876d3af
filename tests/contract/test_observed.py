"""The service seen from outside: every metric that dashboard and alerts name exists, and tells the truth."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.engine.protocol import Failed
from serving.engine.stats import EngineStats
from serving.gateway.images import Fetcher, FetchLimits
from serving.gateway.services import Integrations
from serving.observe.logs import configure
from serving.observe.traces import OtelTraces
from tests.contract.support import Running, running
from tests.support.fakes import ScriptedEngine

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class CountingEngine(ScriptedEngine):
    """With counts, as the real engine has them."""

    def stats(self) -> EngineStats:
        return EngineStats(
            **{
                **dict.fromkeys(EngineStats.__dataclass_fields__, 0),
                "denoiser_calls": 7,
                "rows_per_call": {1: 4, 3: 3},
                "denoise_s": 1.5,
                "encodings": {"embedding computed": 1, "embedding reused": 49},
            }
        )


async def samples(app: Running) -> Samples:
    text = (await app.client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[(name, frozenset(labels.items()))]


async def used(app: Running) -> Samples:
    """The metrics after a job, a refusal and a wrong address."""
    job = await app.until((await app.submit(num_inference_steps=3, seed=1)).id, "completed")
    await app.post(fps=1000)
    assert (await app.post(num_inference_steps=3, seed=1, reuse=True)).json()["id"] == job.id
    await app.client.get(f"/jobs/{job.id}")
    await app.client.get("/nothing/here")
    return await samples(app)


async def test_what_happened_is_what_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, CountingEngine()) as app:
        found = await used(app)
        model = {"model": "scripted"}
        assert value(found, "stillmotion_jobs_ended_total", status="completed", **model) == 1
        assert value(found, "stillmotion_step_seconds_count", **model) == 3
        for phase in ("encode", "denoise", "decode", "mux"):
            assert value(found, "stillmotion_phase_seconds_count", phase=phase, **model) == 1
        assert value(found, "stillmotion_eta_error_ratio_count", **model) == 1
        assert value(found, "stillmotion_key_jobs_total", key="") == 1
        assert value(found, "stillmotion_reuse_total", outcome="reused") == 1
        assert value(found, "stillmotion_rejected_total", code="out_of_range") == 1
        posts = {"method": "POST", "route": "/generate/image-to-video"}
        assert value(found, "stillmotion_http_requests_total", status="202", **posts) == 1
        assert value(found, "stillmotion_http_requests_total", status="422", **posts) == 1
        assert value(found, "stillmotion_http_requests_total", method="GET", route="(none)", status="404") == 1
        assert not re.search(r"job_[0-9a-f]{8}|nothing", str(found)), "no label of a caller's choosing"
        reused = {"kind": "embedding", "outcome": "reused"}
        assert value(found, "stillmotion_encodings_total", **reused) == 49
        assert value(found, "stillmotion_batch_rows_sum") == 4 * 1 + 3 * 3
        assert value(found, "stillmotion_batch_rows_bucket", le="2.0") == 4
        assert value(found, "stillmotion_engine_ready") == 1


async def test_the_queue_is_told_as_it_is(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        first, *_ = [await app.submit() for _ in range(3)]
        await app.until(first.id, "in_progress")
        found = await samples(app)
        assert value(found, "stillmotion_queue_jobs", status="queued") == 2
        assert value(found, "stillmotion_queue_jobs", status="in_progress") == 1
        assert value(found, "stillmotion_queue_age_seconds") > 0


async def test_the_work_that_waits_is_told_in_seconds_by_class(tmp_path: Path) -> None:
    """Three jobs: one runs, two wait; a step of the engine's takes two seconds."""
    engine = ScriptedEngine(gated=True)
    engine.estimate = lambda _, params: 2.0 * params.num_inference_steps  # type: ignore[method-assign]
    async with running(tmp_path, engine) as app:
        first = await app.submit()
        await app.until(first.id, "in_progress")
        work = "stillmotion_queue_work_seconds"
        assert value(await samples(app), work, **{"class": "normal"}) == 0
        await app.submit(num_inference_steps=10)
        await app.submit(num_inference_steps=3)
        await app.submit(num_inference_steps=5, priority="low")
        found = await samples(app)
        seconds = {name: value(found, work, **{"class": name}) for name in ("high", "normal", "low", "offline")}
        assert seconds == {"high": 0, "normal": 26, "low": 10, "offline": 0}
        engine.estimate = lambda _, params: 6.0 if params.num_inference_steps == 3 else None  # type: ignore[method-assign]
        assert value(await samples(app), work, **{"class": "normal"}) == 12, "the unknown as the known"
        engine.estimate = lambda *_: None  # type: ignore[method-assign]
        assert value(await samples(app), work, **{"class": "normal"}) == 10, "nothing was measured: five seconds each"
        engine.gate.set()


async def test_dashboard_and_alerts_name_only_metrics_that_exist(tmp_path: Path, root: Path) -> None:
    async with running(tmp_path, CountingEngine()) as app:
        known = {name for name, _ in await used(app)}
    board = json.loads((root / "deploy/grafana-dashboard.json").read_text())
    rules = yaml.safe_load((root / "deploy/alerts.yaml").read_text())["groups"][0]["rules"]
    panels = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    alerts = [rule["expr"] for rule in rules]
    assert len(panels) >= 12
    assert len(alerts) >= 6
    for expression in panels + alerts:
        named = set(re.findall(r"stillmotion_\w+", expression))
        assert named, expression
        assert named <= known, f"{expression}: no such metric: {named - known}"
        assert expression.count("(") == expression.count(")")
    assert all(rule["labels"]["severity"] in ("page", "ticket") and rule["annotations"]["summary"] for rule in rules)
    families = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in known if "stillmotion" in name}
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", n) for e in panels for n in re.findall(r"stillmotion_\w+", e)}
    assert families == shown, "every metric has its place on the dashboard"


@pytest.fixture
def spans() -> Iterator[tuple[Any, Any]]:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    yield provider.get_tracer("test"), memory
    provider.shutdown()


async def test_one_trace_goes_from_http_through_the_phases(tmp_path: Path, spans: tuple[Any, Any]) -> None:
    tracer, memory = spans
    integrations = Integrations(Fetcher("off", FetchLimits()), None, None, OtelTraces(tracer))
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with running(tmp_path, integrations=integrations) as app:
        job = await app.submit(headers={"traceparent": caller})
        await app.until(job.id, "completed")
    made = {span.name: span for span in memory.get_finished_spans() if span.context.trace_id == int(caller[3:35], 16)}
    request = made["POST /generate/image-to-video"]
    assert request.parent.span_id == int(caller[36:52], 16)
    assert request.attributes["http.response.status_code"] == 202
    assert made["job"].parent.span_id == request.context.span_id
    assert made["job"].attributes["stillmotion.job_id"] == job.id
    assert made["job"].attributes["stillmotion.outcome"] == "completed"
    for phase in ("encode", "denoise", "decode", "mux"):
        assert made[phase].parent.span_id == made["job"].context.span_id
        assert made["job"].start_time <= made[phase].start_time <= made[phase].end_time <= made["job"].end_time


async def test_every_job_is_one_line_and_holds_nothing_that_its_caller_wrote(tmp_path: Path) -> None:
    lines, level = io.StringIO(), logging.getLogger().level
    handler = configure(json_lines=True, stream=lines)
    try:
        async with running(tmp_path) as app:
            done = await app.until(
                (await app.submit(num_inference_steps=3, metadata='{"a": "secret"}')).id, "completed"
            )
            app.engine.ending = Failed("out_of_memory", "the frames do not fit")
            failed = await app.until((await app.submit()).id, "failed")
            app.engine.gated = True
            stopped = await app.submit()
            await app.until(stopped.id, "in_progress")
            await app.client.post(stopped.urls.cancel)
            await app.until(stopped.id, "cancelled")
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    told = [line for line in map(json.loads, lines.getvalue().splitlines()) if line["logger"] == "stillmotion.jobs"]
    assert len(told) == 3
    by_id = {line["job"]: line for line in told}
    assert {name: (line["status"], line.get("error")) for name, line in by_id.items()} == {
        done.id: ("completed", None),
        failed.id: ("failed", "out_of_memory"),
        stopped.id: ("cancelled", None),
    }
    first = by_id[done.id]
    assert (first["task"], first["model"], first["steps"]) == ("image-to-video", "scripted@0123456789ab", 3)
    assert (first["frames"], first["size"], first["attempt"]) == (5, "96x64", 1)
    assert first["waited_s"] >= 0 and first["ran_s"] >= 0
    assert first["message"].startswith(f"{done.id} completed task=image-to-video ")
    assert "secret" not in lines.getvalue()


async def test_every_request_is_one_line_with_its_id(tmp_path: Path) -> None:
    lines = io.StringIO()
    level = logging.getLogger().level
    handler = configure(json_lines=True, stream=lines)
    try:
        async with running(tmp_path) as app:
            answer = await app.client.get("/jobs?limit=3", headers={"X-Request-Id": "mine-7"})
            await app.client.get("/jobs/job_none")
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    access = [line for line in told if line["logger"] == "stillmotion.access"]
    assert answer.headers["x-request-id"] == access[0]["request_id"] == "mine-7"
    assert [(line["route"], line["status"]) for line in access] == [("/jobs", 200), ("/jobs/{job_id}", 404)]
    assert access[0]["message"] == "GET /jobs 200", "no query: it may hold what nobody wants kept"
    assert access[1]["request_id"].startswith("req_")
