"""Captioners that ask a model behind a chat endpoint: the protocol, retries, and a real vision model answering."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError, InvalidRequest
from tests.unit.training.curation.chat_support import Answer, chat_server, completion
from tests.unit.training.curation.clip_support import clip_of, pan, write_vision_model
from training.curation.captions import CAPTIONERS
from training.curation.captions.chat import TRIES, ChatEndpoint
from training.curation.protocols import ToolUnavailable
from training.curation.records import CaptionRecord
from training.curation.stages import refuse_environment

PROMPT = [{"role": "user", "content": "?"}]


def said(captioner: str, text: str | None) -> CaptionRecord:
    return CaptionRecord("c", captioner, text, None if text else "not captioned", "t", "")


def repeats(body: dict[str, Any]) -> Answer:
    """What the captions said, again."""
    text = " and ".join(line.split(": ")[1] for line in body["messages"][-1]["content"].splitlines())
    return completion(f" {text}.\n")


def pictures(body: dict[str, Any]) -> list[Image.Image]:
    """The frames of a message."""
    parts = [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    urls = [part["image_url"]["url"] for part in parts]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


def test_merge_sends_what_the_captioners_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    clip = clip_of(tmp_path, pan(4))
    both = [said("measured", "a dark film frame"), said("coca", "a rabbit"), said("video", "it sleeps")]
    few = [said("coca", "a rabbit"), said("video", None)]
    with chat_server(repeats) as server:
        captioner = CAPTIONERS["merge"]({"url": server.url, "model": "some-model", "key_env": "A_KEY"})
        merged, lonely = captioner.caption([clip, clip], [both, few])
    assert merged.text == "a rabbit and it sleeps."
    assert "some-model" in merged.tool and "secret" not in merged.tool
    assert lonely.text is None and "takes two" in (lonely.reason or "")
    ((path, key, body),) = server.requests
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "some-model")
    assert "dark film frame" not in json.dumps(body)


def test_vision_sends_frames_in_order_and_several_clips_at_once(tmp_path: Path) -> None:
    meeting = threading.Barrier(3, timeout=20)

    def respond(body: dict[str, Any]) -> Answer:
        meeting.wait()  # answers only when three are asked at once
        rows = [np.asarray(one.convert("L"), np.float64).mean() for one in pictures(body)]
        return completion("brighter" if rows == sorted(rows) else "darker")

    ramp = [np.full((48, 96, 3), level, np.uint8) for level in range(0, 240, 10)]
    films = {"up": np.stack(ramp), "down": np.stack(ramp[::-1]), "up again": np.stack(ramp)}
    clips = [clip_of(tmp_path, frames, name) for name, frames in films.items()]
    with chat_server(respond) as server:
        options = {"url": server.url, "model": "m", "frames": "4", "side": "64", "together": "3", "prompt": "What?"}
        records = CAPTIONERS["vision"](options).caption(clips, [[], [], []])
    assert [one.text for one in records] == ["brighter", "darker", "brighter"]
    assert [one.clip_id for one in records] == list(films)
    assert all(one.tool == f"m at {server.url}, 4 frames of at most 64, 'What?'" for one in records)
    assert server.together == 3
    body = server.requests[0][2]
    assert [one.size for one in pictures(body)] == [(64, 32)] * 4
    assert body["messages"][-1]["content"][-1] == {"type": "text", "text": "What?"}
    assert (body["temperature"], body["max_tokens"]) == (0, 120)


@pytest.mark.parametrize("failures", [[503, 503], [429], [500, 429, 502]])
def test_what_passes_by_itself_is_tried_again(failures: list[int]) -> None:
    left = list(failures)
    pauses: list[float] = []

    def respond(body: dict[str, Any]) -> Answer:
        del body
        return (left.pop(0), {"Retry-After": "7"} if failures == [429] else {}, {}) if left else completion("yes")

    with chat_server(respond) as server:
        assert ChatEndpoint("vision", server.url, "m", None, sleep=pauses.append).complete(PROMPT, 5) == "yes"
    assert pauses == ([7.0] if failures == [429] else [1.0, 2.0, 4.0][: len(failures)])


@pytest.mark.parametrize("status", [500, 401, 404])
def test_a_server_that_refuses_everything_ends_the_run(tmp_path: Path, status: int) -> None:
    pauses: list[float] = []
    with chat_server(lambda _: (status, {}, {"error": "no"})) as server:
        endpoint = ChatEndpoint("vision", server.url, "m", None, sleep=pauses.append)
        with pytest.raises(ToolUnavailable, match=f"{status}.*run again") as refused:
            endpoint.complete(PROMPT, 5)
    assert len(server.requests) == (TRIES if status == 500 else 1) == len(pauses) + 1
    with pytest.raises(ToolUnavailable):
        refuse_environment(refused.value)
    with pytest.raises(ToolUnavailable, match="failed"):
        endpoint.complete(PROMPT, 5)  # nobody is there any more


@pytest.mark.parametrize("answer", [(400, {}, {"error": "too long"}), (200, {}, {"no": "choices"})])
def test_a_refused_clip_is_that_clip_s_fault(tmp_path: Path, answer: Answer) -> None:
    with chat_server(lambda _: answer) as server:
        captioner = CAPTIONERS["vision"]({"url": server.url, "model": "m"})
        with pytest.raises(DataError, match="captions of vision") as refused:
            captioner.caption([clip_of(tmp_path, pan(4))], [[]])
    assert len(server.requests) == 1
    refuse_environment(refused.value)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("merge", {"url": "http://x/v1"}, "merge.model"),
        ("merge", {"url": "http://x/v1", "model": "m", "key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ("merge", {"url": "http://x/v1", "weights": "y"}, "local model"),
        ("merge", {"weight": "y"}, "no setting"),
        ("vision", {"url": "http://x/v1"}, "vision.model"),
        ("vision", {"frames": "0"}, "from 1 to 64"),
        ("vision", {"side": "-5"}, "from 64 to 2048"),
        ("vision", {"weights": "y"}, "no setting"),
    ],
)
def test_wrong_settings_are_refused(name: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        CAPTIONERS[name](options)


@pytest.mark.slow  # transformers' vision-language models take seconds to import
def test_a_vision_language_model_behind_the_endpoint_captions(tmp_path: Path) -> None:
    model = write_vision_model()

    def respond(body: dict[str, Any]) -> Answer:
        return completion(model(pictures(body), body["messages"][-1]["content"][-1]["text"], body["max_tokens"]))

    clips = [clip_of(tmp_path, pan(16, seed=seed), f"{seed}" * 20) for seed in range(3)]
    with chat_server(respond) as server:
        options = {"url": server.url, "model": "tiny", "frames": "3", "max_tokens": "6"}
        records = CAPTIONERS["vision"](options).caption(clips, [[], [], []])
        (alone,) = CAPTIONERS["vision"](options).caption(clips[1:2], [[]])
    assert all(one.text and len(one.text.split()) == 6 for one in records)
    assert alone == records[1]
    assert len({one.text for one in records}) > 1, "the words depend on the frames"
