"""The manifest in an mp4: there, found again, and nothing that plays is touched."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.media.video import decode_video, encode_video, frames_sha256
from serving.provenance.video_manifest import (
    attach_manifest,
    encode_picture,
    manifest_pictures,
    read_manifest,
)

FRAMES = np.random.default_rng(1).integers(0, 255, (3, 32, 48, 3), np.uint8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def video() -> bytes:
    return encode_video(FRAMES, 8, "mp4")


@given(manifest=st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_what_is_attached_is_read_back(video: bytes, manifest: dict[str, object]) -> None:
    carrying = attach_manifest(video, manifest)
    assert read_manifest(carrying) == manifest
    assert carrying.startswith(video)


def test_the_frames_are_the_same_and_players_do_not_mind(video: bytes) -> None:
    carrying = attach_manifest(video, {"seed": 7, "filler": "x" * 100_000})
    assert frames_sha256(decode_video(carrying)[0]) == frames_sha256(decode_video(video)[0])
    with av.open(io.BytesIO(carrying)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_equal_inputs_give_equal_files_and_a_second_manifest_replaces_the_first(video: bytes) -> None:
    once = attach_manifest(video, {"b": 1, "a": 2})
    assert once == attach_manifest(video, {"a": 2, "b": 1})
    assert attach_manifest(attach_manifest(video, {"old": True}), {"b": 1, "a": 2}) == once


def test_a_video_without_a_manifest_has_none(video: bytes) -> None:
    assert read_manifest(video) is None


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x1aE\xdf\xa3 webm", b"\0\0\0\x08ftyp\0\0\0\x02mdat"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_manifest(data)


@given(cut=st.integers(1, 200))
def test_a_file_cut_short_is_refused(video: bytes, cut: int) -> None:
    with pytest.raises(InvalidRequest):
        read_manifest(attach_manifest(video, {"filler": "x" * 300})[:-cut])


def test_pictures_come_back_and_nonsense_is_refused() -> None:
    held = {"pictures": [encode_picture(b"one"), encode_picture(b"two")]}
    assert manifest_pictures(held) == (b"one", b"two")
    for wrong in ({}, {"pictures": "x"}, {"pictures": [1]}, {"pictures": ["!!"]}):
        with pytest.raises(InvalidRequest):
            manifest_pictures(wrong)
