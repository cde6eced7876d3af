"""Encoding while later frames are decoded: the same file, in order, beginning before the last frame is there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from model.errors import InvalidRequest
from model.media.video import decode_video, encode_video
from model.params import OutputFormat
from serving.engine import mux
from serving.engine.loop import StepLoop
from serving.engine.mux import AheadEncoder, build_result, encode_ahead
from serving.engine.settings import EngineSettings

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 17, 32, 3), np.uint8)


@pytest.mark.parametrize("format", ["mp4", "webm"])
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_added_by_chunks_make_the_same_file(format: Literal["mp4", "webm"], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        encoder = AheadEncoder(pool, 7, format, len(FRAMES))
        for chunk in (FRAMES[:4], FRAMES[4:6], FRAMES[6:]):
            encoder.add(chunk)
        ahead = build_result(FRAMES, fps=7, output_format=format, degraded=False, manifest={}, encoder=encoder)
    whole = encode_video(FRAMES, 7, format)
    assert np.array_equal(decode_video(ahead.video)[0], decode_video(whole)[0])
    assert ahead.video == whole or format == "webm"  # into which its muxer writes a random number


def test_encoding_begins_before_the_last_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    began, encoded = threading.Event(), []

    class Encoder:
        def __init__(self, *_: object) -> None:
            pass

        def add(self, frames: np.ndarray) -> None:
            began.set()
            encoded.append(len(frames))

        def finish(self) -> bytes:
            return bytes(encoded)

    monkeypatch.setattr(mux, "VideoEncoder", Encoder)
    with ThreadPoolExecutor(1) as pool:
        encoder = AheadEncoder(pool, 7, "mp4", len(FRAMES))
        encoder.add(FRAMES[:4])
        assert began.wait(10)
        encoder.add(FRAMES[4:])
        assert encoder.finish() == bytes([4, 5])


def test_the_loop_hands_on_each_chunk_when_it_is_decoded() -> None:
    loop, log, left = StepLoop({}, EngineSettings()), list[str](), ["first", "second", "third"]
    encoder = SimpleNamespace(add=lambda chunk: log.append(f"encode the {chunk}"))
    decoding = SimpleNamespace(chunks=[])
    job: Any = SimpleNamespace(decoding=decoding, encoder=None, enter=lambda phase: log.append(phase))

    def decode(_: object, *, alone: bool) -> bool:
        assert alone
        decoding.chunks.append(left.pop(0))
        log.append(f"decode the {decoding.chunks[-1]}")
        return not left

    fakes: dict[str, Any] = {
        "_decoding": SimpleNamespace(chunk=decode),
        "_encoder": lambda _: encoder,
        "_mux_pool": SimpleNamespace(submit=lambda *_: None),
    }
    loop._mux_pool.shutdown()
    vars(loop).update(fakes)
    for _ in range(3):
        loop._decode(job)
    names = ("first", "second", "third")
    assert log == [f"{verb} the {name}" for name in names for verb in ("decode", "encode")] + ["mux"]


@pytest.mark.parametrize(
    ("format", "final", "ahead"), [("mp4", True, True), ("webm", True, True), ("gif", True, False), (None, True, False)]
)
def test_what_needs_every_frame_first_is_not_encoded_ahead(
    format: OutputFormat | None, final: bool, ahead: bool
) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert (encode_ahead(pool, 7, format, 9, final=final) is not None) is ahead
        assert encode_ahead(pool, 7, format, 9, final=False) is None


def test_an_error_of_an_early_chunk_is_raised_at_the_end() -> None:
    with ThreadPoolExecutor(2) as pool:
        encoder = AheadEncoder(pool, 7, "mp4", len(FRAMES))
        encoder.add(FRAMES[:4, ..., :2])
        encoder.add(FRAMES[4:])
        with pytest.raises(InvalidRequest, match="frames must be"):
            encoder.finish()
