"""OpenAI's stock client, unchanged, against a running server."""

from __future__ import annotations

import asyncio
import base64
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from serving.gateway.openai_schema import frames_for, size_for
from serving.keys import KeyStore
from tests.contract.support import Running, entry, finished, listening, picture, running
from tests.support.fakes import ScriptedEngine

T = TypeVar("T")


@pytest.fixture(autouse=True)
def openai() -> Iterator[Any]:
    module = pytest.importorskip("openai")
    with warnings.catch_warnings():
        # The package tells of the end of OpenAI's own service with a warning at every call.
        warnings.simplefilter("ignore")
        yield module


async def calling(work: Callable[[], T]) -> T:
    """The stock client's blocking calls, beside the server's event loop."""
    return await asyncio.to_thread(work)


def client(openai: Any, app: Running, key: str = "none needed") -> Any:
    return openai.OpenAI(base_url=f"{app.address}/v1", api_key=key, max_retries=0)


@pytest.mark.slow
async def test_the_stock_client_runs_unchanged(openai: Any, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        token = KeyStore(app.services.database).create("openai")[1]
        app.services.keys._read_at = -1e9
        videos = client(openai, app, str(token)).videos

        def whole_life() -> tuple[Any, Any, bytes, bytes, list[str]]:
            made = videos.create_and_poll(
                prompt="a red fox", input_reference=("still.png", picture(), "image/png"), poll_interval_ms=20
            )
            again = videos.retrieve(made.id)
            data = videos.download_content(made.id).read()
            sheet = videos.download_content(made.id, variant="spritesheet").read()
            return made, again, data, sheet, [found.id for found in videos.list(limit=1, order="asc")]

        made, again, data, sheet, listed = await calling(whole_life)
        assert (made.status, made.progress, made.object, made.model) == ("completed", 100, "video", "scripted")
        assert (made.prompt, made.seconds, made.size) == ("a red fox", "0.714", "96x64")
        assert made.warnings == ["prompt_unused"]
        assert again == made
        assert listed == [made.id]
        done = finished(app.engine.requests[0])
        assert data == done.video
        assert sheet == b"\x89PNG frames"

        gone = await calling(lambda: videos.delete(made.id))
        assert (gone.id, gone.deleted, gone.object) == (made.id, True, "video.deleted")
        with pytest.raises(openai.NotFoundError):
            await calling(lambda: videos.retrieve(made.id))
        stranger = client(openai, app, "wrong")
        with pytest.raises(openai.AuthenticationError):
            await calling(lambda: stranger.videos.list())
        models = await calling(lambda: client(openai, app, str(token)).models.list())
        assert [model.id for model in models] == ["scripted"]
        found = await calling(lambda: client(openai, app, str(token)).models.retrieve("scripted"))
        assert found.owned_by == "stillmotion"


async def test_what_cannot_be_made_is_an_error_the_client_knows(openai: Any, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        videos = client(openai, app).videos
        cases: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({}, openai.UnprocessableEntityError, "input_reference"),
            ({"input_reference": b"no picture"}, openai.UnprocessableEntityError, "image"),
            ({"input_reference": picture(), "size": "big"}, openai.UnprocessableEntityError, "size"),
            ({"input_reference": picture(), "seconds": "soon"}, openai.UnprocessableEntityError, "seconds"),
            ({"input_reference": picture(), "model": "sora-2"}, openai.UnprocessableEntityError, "model"),
        ]
        for fields, kind, param in cases:
            with pytest.raises(kind) as caught:
                await calling(lambda fields=fields: videos.create(prompt="x", **fields))
            assert caught.value.param == param, fields


async def test_a_picture_may_come_as_a_data_url(openai: Any, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        url = "data:image/png;base64," + base64.b64encode(picture()).decode()
        videos = client(openai, app).videos
        reference = {"input_reference": {"image_url": url}}
        made = await calling(lambda: videos.create(prompt="x", extra_body=reference, size="1280x720"))
        assert (made.status in ("queued", "in_progress", "completed"), made.size) == (True, "96x64")


async def test_cancelled_is_told_as_failed(tmp_path: Path) -> None:
    async with running(tmp_path, ScriptedEngine(gated=True)) as app:
        await app.submit()
        job = await app.submit()
        await app.client.post(job.urls.cancel)
        told = (await app.client.get(f"/v1/videos/{job.id}")).json()
        assert (told["status"], told["error"]["code"]) == ("failed", "cancelled")


@given(st.floats(0.05, 99).map(lambda seconds: f"{seconds:.2f}"), st.lists(st.integers(1, 128), min_size=1, max_size=4))
def test_seconds_choose_the_nearest_frame_count(seconds: str, counts: list[int]) -> None:
    checkpoint = replace(entry(), num_frames=tuple(counts))
    chosen = frames_for(checkpoint, seconds)
    wished = float(seconds) * checkpoint.defaults["fps"]
    assert abs((chosen or 0) - wished) == min(abs(count - wished) for count in counts)
    assert frames_for(checkpoint, None) is None


@example(32, 32)
@given(st.integers(1, 99999), st.integers(1, 99999))
def test_every_size_becomes_one_the_checkpoint_makes(width: int, height: int) -> None:
    checkpoint = entry()
    made = size_for(checkpoint, f"{width}x{height}")
    assert made is not None
    params = checkpoint.resolve({"width": made[0], "height": made[1]}, 1)
    assert (params.width, params.height) == made
    if made != (width, height) and 1 / 4 < width / height < 4:
        assert abs(made[0] * made[1] / (96 * 64) - 1) < 0.7, "of that aspect, near the checkpoint's own area"


@pytest.mark.parametrize("size", ["", "x", "12x", "0x10", "-1x5", "1e3x4", "100000x1", "64×64"])
def test_what_is_no_size_is_refused(size: str) -> None:
    with pytest.raises(InvalidRequest):
        size_for(entry(), size)
