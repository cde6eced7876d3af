"""The whole OpenAPI document, driven by schemathesis: no 5xx, and no answer that the document does not tell of."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from serving.keys import KeyStore
from tests.contract.support import Running, listening, picture
from tests.support.fakes import ScriptedEngine

_PATIENCE_S = 120
"""A busy machine is no failure."""


@pytest.fixture(scope="module")
def schemathesis() -> Any:
    """Imported by the test that needs it: it takes seconds, and every worker collects this file."""
    imported = pytest.importorskip("schemathesis")
    lines = imported.serializer("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
    lines(lambda _, value: str(value).encode())  # lines of JSON are text
    return imported


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A server on a thread of its own, and a key for it."""
    folder: Path = tmp_path_factory.mktemp("schema")
    started, ended = threading.Event(), threading.Event()
    found: list[tuple[str, dict[str, str]]] = []

    async def serve() -> None:
        async with listening(folder, ScriptedEngine(), queue_limit=10_000) as app:
            found.append((app.address, await key(app)))
            started.set()
            while not ended.is_set():
                await asyncio.sleep(0.05)

    async def key(app: Running) -> dict[str, str]:
        token = KeyStore(app.services.database).create("schema", operator=True)[1]
        app.services.keys._read_at = -1e9
        return {"Authorization": f"Bearer {token}"}

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(_PATIENCE_S)
    yield found[0]
    ended.set()
    thread.join()


_BOUNDED = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_operation_answers_as_documented(schemathesis: Any, served: tuple[str, dict[str, str]]) -> None:
    address, headers = served
    document = httpx2.get(f"{address}/openapi.json", timeout=_PATIENCE_S).json()
    operations = [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]
    assert len(operations) > 20
    seen: set[int] = set()
    for operation in operations:
        if not operation.path.endswith("/events"):  # a stream; its own tests follow it
            seen |= drive(operation, [schemathesis.checks.not_a_server_error, documented], address, headers)
    assert {200, 404, 422} <= seen


def drive(operation: Any, checks: list[Any], address: str, headers: dict[str, str]) -> set[int]:
    """Try one operation; the statuses it answered with."""
    job_id = submitted(address, headers)
    there = {"job_id": job_id, "video_id": job_id, "upload_id": uploaded(address, headers)}
    seen: set[int] = set()

    @_BOUNDED
    @given(case=operation.as_strategy())
    def one(case: Any) -> None:
        for name in there.keys() & case.path_parameters.keys():
            if len(case.path_parameters[name]) % 2:
                case.path_parameters[name] = there[name]  # half of the cases meet a job or an upload that is there
        answer = case.call(base_url=address, headers=headers, timeout=_PATIENCE_S)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=checks)

    one()
    return seen


def submitted(address: str, headers: dict[str, str]) -> str:
    """A job that is there."""
    files = {"image": ("x.png", picture(), "image/png")}
    answer = httpx2.post(f"{address}/generate/image-to-video", files=files, headers=headers, timeout=_PATIENCE_S)
    return str(answer.json()["id"])


def uploaded(address: str, headers: dict[str, str]) -> str:
    """An upload that is there."""
    answer = httpx2.post(f"{address}/uploads", content=picture(), headers=headers, timeout=_PATIENCE_S)
    return str(answer.json()["id"])


def documented(ctx: Any, response: Any, case: Any) -> None:
    """The status is one that the document names for this operation."""
    told = set(case.operation.definition.raw["responses"])
    assert str(response.status_code) in told, f"{case.method} {case.path}: {response.status_code} is not documented"
