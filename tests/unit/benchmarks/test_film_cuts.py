"""film_cuts pairs cuts one to one, and knows what lies in the other's transitions."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.film_cuts import hard_cuts, in_transitions, matched
from training.curation.records import Cut


def cut(kind: str, start: int, end: int) -> Cut:
    middle, at = (start + end) / 48, [frame / 24 for frame in (start, end)]
    return Cut("film", middle, *at, kind, 1.0, "a detector", "full")  # type: ignore[arg-type]


CUTS = [cut("hard", 30, 30), cut("fade", 40, 60), cut("dissolve", 90, 99), cut("hard", 12, 12)]


def test_hard_cuts_are_frames_in_order() -> None:
    assert hard_cuts(CUTS, 24.0) == [12, 30]


def test_frames_in_transitions_are_counted_with_a_frame_of_slack() -> None:
    assert in_transitions([39, 50, 62, 89, 101, 30], CUTS, 24.0) == 3


FRAMES = st.lists(st.integers(0, 60), max_size=12, unique=True).map(sorted)


@given(FRAMES, FRAMES)
def test_no_cut_is_in_two_pairs_and_no_other_pairing_is_larger(mine: Sequence[int], theirs: Sequence[int]) -> None:
    import scipy.optimize  # type: ignore[import-untyped]

    pairs = matched(mine, theirs)
    assert all(abs(one - other) <= 1 for one, other in pairs)
    assert len({one for one, _ in pairs}) == len({other for _, other in pairs}) == len(pairs)
    near = [[float(abs(one - other) > 1) for other in theirs] for one in mine]
    if mine and theirs:
        rows, columns = scipy.optimize.linear_sum_assignment(near)
        assert len(pairs) == sum(near[r][c] == 0 for r, c in zip(rows, columns, strict=True))
