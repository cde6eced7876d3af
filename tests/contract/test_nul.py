"""A NUL byte, which Postgres can store nowhere: in paths, queries and bodies it is refused, and never a 5xx."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.keys import KeyStore
from tests.contract.support import picture, running
from tests.support.fakes import ScriptedEngine

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    pgserver = pytest.importorskip("pgserver", reason="needs the pgserver wheel")
    pytest.importorskip("psycopg", reason="needs the postgres extra")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path has a length limit
    server = pgserver.get_server(folder)
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_nul_byte_anywhere_is_no_server_error(tmp_path: Path, database_url: str) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True), database_url=database_url) as app:
        token = KeyStore(app.services.database).create("k", operator=True)[1]
        headers = {"Authorization": f"Bearer {token}"}
        document = (await app.client.get("/openapi.json")).json()
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if "{" in path:
                    url = "/".join("a%00b" if part.startswith("{") else part for part in path.split("/"))
                    answer = await app.client.request(method, url, headers=headers)
                    assert answer.status_code in (404, 422), (method, path, answer.text)
                for parameter in operation.get("parameters", []):
                    if parameter["in"] == "query":
                        url = path.replace("{", "").replace("}", "")
                        asked = f"{url}?{parameter['name']}=a%00b"
                        answer = await app.client.request(method, asked, headers=headers)
                        assert answer.status_code in (404, 422), (method, asked, answer.text)
        data = {"data": base64.b64encode(picture()).decode()}
        for body in (
            {"image": data, "model": "a\0b"},
            {"image": data, "metadata": {"a\0": "\0b"}},
            {"image": data, "webhook": {"url": "https://example.com/\0"}},
            {"image": {"url": "https://example.com/\0"}},
        ):
            answer = await app.client.post("/generate/image-to-video", json=body, headers=headers)
            assert answer.status_code < 500, (body, answer.text)
            if answer.status_code == 202:  # JSON holds it escaped
                assert (await app.client.get(answer.json()["urls"]["self"], headers=headers)).status_code == 200
        line = {"custom_id": "a\0b", "url": "/generate/image-to-video", "body": {"image": data}}
        jsonl = {**headers, "Content-Type": "application/jsonl"}
        answer = await app.client.post("/batches", content=json.dumps(line), headers=jsonl)
        assert answer.status_code == 422, answer.text
        form = await app.client.post(
            "/v1/videos", data={"prompt": "a\0b"}, files={"input_reference": picture()}, headers=headers
        )
        assert form.status_code < 500, form.text
