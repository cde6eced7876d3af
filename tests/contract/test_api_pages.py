"""Models, health, the OpenAPI document, and the two pages for people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from stillmotion.types import REQUESTS, ImageToVideoRequest, ModelList

from tests.contract.support import running
from tests.support.fakes import DEFAULTS


async def test_models(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        models = ModelList.model_validate((await app.client.get("/models")).json()).data
        assert [model.id for model in models] == ["scripted", "second"]
        assert (models[0].task, models[0].version, models[0].num_frames) == ("image-to-video", "0123456789ab", [5])
        assert (models[0].width, models[0].height, models[0].defaults) == (96, 64, DEFAULTS)


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        here = {node["$ref"]} if "$ref" in node else set()
        return here.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


async def test_the_openapi_document_is_whole(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        document = (await app.client.get("/openapi.json")).json()
        for reference in references(document):
            node = document
            for part in reference.removeprefix("#/").split("/"):
                node = node[part]
        error = {"$ref": "#/components/schemas/ErrorResponse"}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert operation["summary"], (path, method)
                for status, response in operation["responses"].items():
                    if int(status) >= 400:
                        assert response["content"]["application/json"]["schema"] == error, (path, status)
        submit = document["paths"]["/generate/image-to-video"]["post"]
        expected = {"200", "202", "400", "401", "404", "409", "413", "415", "422", "429", "500", "503", "507"}
        assert set(submit["responses"]) == expected
        schemas = document["components"]["schemas"]
        form = schemas["ImageToVideoForm"]["properties"]
        body = schemas["ImageToVideoBody"]["properties"]
        assert set(form) == set(body) == {"image", *ImageToVideoRequest.model_fields}
        assert set(submit["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
        assert "HTTPValidationError" not in schemas


@pytest.mark.parametrize("page", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere(tmp_path: Path, page: str) -> None:
    async with running(tmp_path) as app:
        answer = await app.client.get(page)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/html")
        links = re.findall(r"""(?:src|href)=["']([^"']+)["']""", answer.text)
        assert links
        for link in links:
            assert link.startswith("/"), link
            assert (await app.client.get(link)).status_code == 200, link


async def test_the_playground_names_only_what_exists(tmp_path: Path, root: Path) -> None:
    scripts = sorted(path.name for path in (root / "serving" / "web").glob("*.js"))
    async with running(tmp_path) as app:
        page = (await app.client.get("/")).text
        ids = set(re.findall(r'id="([\w-]+)"', page))
        fields = {name for settings, _ in REQUESTS.values() for name in settings.model_fields}
        for name in scripts:
            answer = await app.client.get(f"/web/{name}")
            assert answer.status_code == 200 and "javascript" in answer.headers["content-type"]
            assert set(re.findall(r'\$\("([\w-]+)"\)', answer.text)) - {"f-resize_mode", "f-seed", "seed-lock"} <= ids
            assert set(re.findall(r'from "\./([\w.]+)"', answer.text)) <= set(scripts)
            assert "innerHTML" not in answer.text
        listed = re.search(r"const GROUPS = \{(.*?)\};", (await app.client.get("/web/fields.js")).text, re.DOTALL)
        assert listed and set(re.findall(r'"(\w+)"', listed.group(1))) <= fields
