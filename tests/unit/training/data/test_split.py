"""The held-out split: its rule, and that nothing held out can be trained on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from training.data.split import CREDITS_START_S, Span, photo_split, refuse_held_out, shot_split


def test_every_eighth_shot_before_the_credits_is_held_out() -> None:
    splits = [shot_split(index, 3.0 * index) for index in range(200)]
    film = [index for index in range(200) if 3.0 * index < CREDITS_START_S]
    assert [index for index in film if splits[index] == "heldout"] == list(range(7, film[-1] + 1, 8))
    assert set(splits[film[-1] + 1 :]) == {"credits"}


def test_a_third_of_the_photographs_is_held_out() -> None:
    assert [photo_split(i) for i in range(6)] == ["train", "train", "heldout"] * 2


times = st.tuples(st.floats(0, 500), st.floats(0.1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(a=times, b=times)
def test_spans_overlap_when_a_moment_is_in_both(a: tuple[float, float], b: tuple[float, float]) -> None:
    one, two = Span("film", *a), Span("film", *b)
    assert one.overlaps(two) == two.overlaps(one) == (max(a[0], b[0]) < min(a[1], b[1]))
    assert not one.overlaps(Span("other", *b))


def test_training_on_held_out_footage_is_refused_by_time() -> None:
    held = [Span("film", 10.0, 14.0)]
    refuse_held_out([Span("film", 14.0, 18.0), Span("photo", 0, 0)], held)
    with pytest.raises(DataError, match=r"10\.00-14\.00 s") as caught:
        refuse_held_out([Span("film", 13.9, 15.0)], held)
    assert caught.value.code == "held_out"


def test_a_photograph_is_one_moment() -> None:
    assert Span("photo", 0, 0).overlaps(Span("photo", 0, 0))
