"""Sizes: the stride rules and the even split, as properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.shapes import LatentShape, VideoShape, even_chunks, nearest


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


BUDGETS = st.builds(
    VideoShape,
    st.integers(1, 25),
    st.integers(1, 9).map((64).__mul__),
    st.integers(1, 16).map((64).__mul__),
    st.just(64),
)


@given(budget=BUDGETS, aspect=st.floats(1, 4), short=st.integers(1, 25))
def test_variants_keep_to_the_budget_and_none_could_be_wider(budget: VideoShape, aspect: float, short: int) -> None:
    lengths = (short,) if short < budget.num_frames else ()
    shapes = budget.variants(aspect, lengths)
    assert budget in shapes and len(set(shapes)) == len(shapes)
    assert {shape.num_frames for shape in shapes} == {budget.num_frames, *lengths}
    area = budget.height * budget.width
    for shape in shapes:
        height, width = shape.height, shape.width
        assert height % 64 == width % 64 == 0
        assert height * width <= area and shape.pixels <= budget.pixels
        assert (height, width) == (budget.height, budget.width) or max(height, width) <= aspect * min(height, width)
        # It is the widest of its height or the tallest of its width.
        assert height * (width + 64) > area or (height + 64) * width > area


@given(budget=BUDGETS, frames=st.integers(1, 40), height=st.integers(16, 4000), width=st.integers(16, 4000))
def test_a_clip_belongs_to_one_shape_the_longest_it_fills_and_the_nearest_in_aspect(
    budget: VideoShape, frames: int, height: int, width: int
) -> None:
    lengths = tuple(n for n in (2, 8) if n < budget.num_frames)
    shapes = budget.variants(2.0, lengths)
    found = nearest(shapes, frames, height, width)
    fitting = [shape for shape in shapes if shape.num_frames <= frames]
    if found is None:
        assert not fitting
        return
    assert found.num_frames == max(shape.num_frames for shape in fitting)

    def away(shape: VideoShape) -> float:
        return abs(math.log((shape.width / shape.height) / (width / height)))

    assert away(found) <= min(away(shape) for shape in fitting) + 1e-6
    assert nearest(shapes[::-1], frames, height, width) == found, "whatever their order"


def test_the_shapes_of_256_by_384() -> None:
    shapes = VideoShape(14, 256, 384, 64).variants(2.0)
    assert {(s.height, s.width) for s in shapes} == {(256, 384), (384, 256), (320, 256), (256, 320)}
    assert VideoShape(14, 256, 384, 64).variants(0.0, (8,)) == (
        VideoShape(14, 256, 384, 64),
        VideoShape(8, 256, 384, 64),
    )
    for wrong in (
        lambda: VideoShape(14, 256, 384, 64).variants(0.5),
        lambda: VideoShape(4, 64, 64).variants(1.0, (8,)),
    ):
        with pytest.raises(InvalidRequest):
            wrong()
