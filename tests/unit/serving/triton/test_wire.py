"""Frames: what goes in comes out on the other side, and what is no frame is refused with a reason."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.params import ImageToVideoParams
from serving.engine.protocol import EngineEvent, EngineRequest, Share
from serving.triton.wire import (
    EVENTS,
    Frame,
    RequestFrame,
    Status,
    pack_control,
    pack_event,
    pack_request,
    unpack_event,
    unpack_request,
)

PARAMS = ImageToVideoParams(
    num_frames=5,
    height=32,
    width=48,
    seed=2**63 - 1,
    fps=7,
    motion_bucket_id=127,
    max_guidance_scale=3.0,
    num_inference_steps=4,
    solver="euler",
    schedule="karras",
    decode_chunk_size=8,
    noise_aug_strength=0.02,
    resize_mode="crop",
    min_guidance_scale=1.0,
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    "int": st.integers(0, 2**31),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "float | None": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "str": st.text(max_size=20),
    "bool": st.booleans(),
    "bytes": st.binary(max_size=200),
    "dict[str, float]": st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)),
    "dict[str, object]": st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3),
    "dict[str, Any]": st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3),
}


def anything(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any event of a kind, built from its declared fields."""
    return st.builds(kind, **{one.name: VALUES[one.type] for one in dataclasses.fields(kind)})


@given(event=st.one_of([anything(kind) for kind in (*get_args(EngineEvent), Status)]))
def test_every_event_comes_out_as_it_went_in(event: EngineEvent | Status) -> None:
    assert unpack_event(pack_event(event)) == event


def test_no_event_is_missing() -> None:
    assert set(EVENTS.values()) == set(get_args(EngineEvent))


@given(
    images=st.lists(st.binary(min_size=1, max_size=50), max_size=3),
    state=st.none() | st.binary(min_size=1, max_size=50),
    name=st.text(max_size=20),
    share=st.builds(
        Share,
        st.text(max_size=5),
        st.floats(0.1, 9),
        st.sampled_from(["high", "offline"]),
        st.none() | st.floats(-9, 9),
        st.just(0.0) | st.floats(0, 9),
    ),
    previews=st.booleans(),
    raw=st.booleans(),
)
def test_a_request_comes_out_as_it_went_in(
    images: list[bytes], state: bytes | None, name: str, share: Share, previews: bool, raw: bool
) -> None:
    request = EngineRequest(name, "mini", PARAMS, tuple(images), "webm", share, state, previews, raw=raw)
    ask = unpack_request(pack_request(request, "gateway"))
    assert (ask.kind, ask.id, ask.client, ask.output_format) == ("generate", name, "gateway", "webm")
    assert ImageToVideoParams(**ask.params) == PARAMS
    assert (ask.pictures, ask.state, ask.share, ask.previews) == (tuple(images), state, share, previews)
    assert ask.raw == raw


def test_a_plain_request_says_nothing_that_an_earlier_server_does_not_know() -> None:
    told = json.loads(pack_request(EngineRequest("x", "mini", PARAMS, (), "mp4"), "gateway").header)
    assert told.keys() == {"kind", "id", "params", "output_format", "share", "previews", "client", "parts"}
    assert told["share"].keys() == {"tenant", "weight", "priority", "deadline_s"}


def test_a_control_frame_names_a_job() -> None:
    ask = unpack_request(pack_control("cancel", "gateway", "job-7"))
    assert (ask.kind, ask.id, ask.client) == ("cancel", "job-7", "gateway")


def test_a_picture_without_lengths_is_one() -> None:
    ask = unpack_request(RequestFrame(b'{"id": "x", "params": {"seed": 3}}', b"png"))
    assert (ask.kind, ask.pictures, ask.params) == ("generate", (b"png",), {"seed": 3})


@pytest.mark.parametrize(
    ("told", "pictures", "message"),
    [
        (b"{", None, "not JSON"),
        (b"[]", None, "no JSON object"),
        (b'{"kind": "dance"}', None, "kind must be one of"),
        (b'{"seed": 1}', None, "no field 'seed'"),
        (b'{"output_format": "avi"}', None, "output_format must be"),
        (b'{"share": {"colour": 1}}', None, "cannot be read"),
        (b'{"parts": [3, 4]}', b"12345", "add up to 7"),
        (b'{"parts": [-1, 6]}', b"12345", "lengths in bytes"),
        (b'{"parts": 5}', b"12345", "lengths in bytes"),
    ],
)
def test_what_is_no_request_is_refused(told: bytes, pictures: bytes | None, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        unpack_request(RequestFrame(told, pictures))


@pytest.mark.parametrize(
    "told", [{"kind": "Exploded"}, {"kind": "Stepped"}, {"kind": "Queued", "position": 1, "more": 2}, {}]
)
def test_what_is_no_event_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        unpack_event(Frame(json.dumps(told).encode()))
