"""Sizes: the stride rules and the even split, as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.shapes import LatentShape, VideoShape, even_chunks


@given(total=st.integers(1, 200), largest=st.integers(1, 40))
def test_even_chunks_cover_the_clip_evenly(total: int, largest: int) -> None:
    chunks = even_chunks(total, largest)
    assert sum(chunks) == total
    assert max(chunks) <= largest
    assert max(chunks) - min(chunks) <= 1
    assert len(chunks) == -(-total // largest)


def test_25_frames_by_8_never_end_in_a_chunk_of_one() -> None:
    assert even_chunks(25, 8) == (7, 6, 6, 6)
    assert even_chunks(14, 8) == (7, 7)


@given(t=st.integers(1, 30), h=st.integers(1, 80), w=st.integers(1, 160), c=st.sampled_from([4, 16]))
def test_latents_are_an_eighth_of_the_pixels(t: int, h: int, w: int, c: int) -> None:
    latent = VideoShape(t, 8 * h, 8 * w).latent(c)
    assert latent == LatentShape(t, c, h, w)
    assert latent.numel == t * c * h * w


@pytest.mark.parametrize(
    ("size", "param", "hint"),
    [((0, 64, 64), "num_frames", "at least 1"), ((1, 60, 64), "height", "64"), ((1, 64, 100), "width", "96 or 104")],
)
def test_a_bad_size_names_the_field(size: tuple[int, int, int], param: str, hint: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        VideoShape(*size)
    assert caught.value.param == param
    assert any(part in caught.value.message for part in hint.split(" or "))
