"""LiteLLM's video functions, unchanged, against a running server.

The package is not among what `make setup` installs (its pins are newer than ours); in an environment that has it beside
this project, these tests run.
"""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from typing import Any

import pytest

from tests.contract.support import finished, listening, picture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of its own, at its import


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Its table of prices is a file on the network unless it is told to take its own.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return pytest.importorskip("litellm")


async def test_a_still_from_generation_to_content(litellm: Any, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:
        there: dict[str, Any] = {
            "api_base": f"{app.address}/v1",
            "api_key": "none needed",
            "custom_llm_provider": "openai",
        }

        def whole_life() -> tuple[Any, bytes, Any]:
            still = io.BytesIO(picture())
            still.name = "still.png"
            made = litellm.video_generation(
                prompt="a red fox",
                model="openai/scripted",
                input_reference=still,
                user="someone",
                extra_body={"seed": 42, "fps": 7, "num_inference_steps": 2},
                **there,
            )
            until = time.monotonic() + 60
            while (now := litellm.video_status(video_id=made.id, **there)).status != "completed":
                assert now.status in ("queued", "in_progress"), now
                assert time.monotonic() < until
                time.sleep(0.05)
            return now, litellm.video_content(video_id=made.id, **there), litellm.video_list(**there)

        now, data, listed = await asyncio.to_thread(whole_life)
        request = app.engine.requests[0]
        assert (request.params.seed, request.params.fps, request.params.num_inference_steps) == (42, 7, 2)
        assert (now.progress, now.size, now.seconds) == (100, "96x64", "0.714")
        assert data == finished(request).video
        assert [video["model"] for video in listed["data"]] == ["scripted"]


async def test_a_refused_field_is_its_bad_request(litellm: Any, tmp_path: Path) -> None:
    async with listening(tmp_path) as app:

        def ask() -> None:
            litellm.video_generation(
                prompt="a red fox",
                model="openai/scripted",
                api_base=f"{app.address}/v1",
                api_key="none needed",
                extra_body={"negative_prompt": "blur"},
            )

        with pytest.raises(litellm.BadRequestError, match="negative_prompt is not supported"):
            await asyncio.to_thread(ask)
        assert app.engine.requests == []
