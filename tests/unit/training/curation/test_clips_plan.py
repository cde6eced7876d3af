"""Where clips begin and end, for any packets and any cuts."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.curation.clips_plan import ClipRules, Timeline, loss, plan, shots, timeline
from training.curation.probe import PacketIndex
from training.curation.records import Cut


@st.composite
def packets(draw: st.DrawFn) -> PacketIndex:
    """Groups of pictures of any length, in decoding order: a keyframe, then anchors with B-frames before them."""
    order: list[int] = []
    keys: list[bool] = []
    for length in draw(st.lists(st.integers(1, 30), min_size=1, max_size=6)):
        base, t = len(order), 1
        order.append(base)
        keys.append(True)
        while t < length:
            step = min(draw(st.integers(1, 4)), length - t)
            order += [base + t + step - 1, *range(base + t, base + t + step - 1)]
            keys += [False] * step
            t += step
    pts = np.array(order, np.int64) * 10 + 50
    zeros = np.zeros(len(pts), np.int64)
    return PacketIndex(pts, zeros, zeros, np.array(keys), Fraction(1, 240), 10)


def cut_list(draw_cuts: list[tuple[int, int]], count: int) -> list[Cut]:
    return [
        Cut("s", 0, a / 24, min(a + length, count) / 24, "hard" if not length else "dissolve", 1, "", "")
        for a, length in draw_cuts
        if 0 < a < count
    ]


CUTS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 12)), max_size=6)
LENGTHS = st.sampled_from([(0.2, 0.6), (0.5, 2.0), (1.0, 4.0)])


@settings(max_examples=50, deadline=None)
@given(packets(), CUTS, LENGTHS, st.sampled_from([None, 0.0, 0.2]), st.booleans())
def test_clips_lie_in_shots_have_legal_lengths_and_never_overlap(
    index: PacketIndex, drawn: list[tuple[int, int]], lengths: tuple[float, float], lost: float | None, keyframes: bool
) -> None:
    line = timeline(index, end_on_keyframes=keyframes)
    cuts = cut_list(drawn, len(index.pts))
    parts = shots(line, cuts)
    rules = ClipRules(*lengths, lost, keyframes)
    spans = plan(line, parts, rules)
    for span in spans:
        assert sum(first <= span.start and span.end <= last for first, last in parts) == 1
        assert rules.min_s - 1e-9 <= line.span_s(span.start, span.end) <= rules.max_s + 1e-9
        assert span.start <= span.copy_start <= span.copy_end <= span.end
        if span.copy_start < span.copy_end:
            assert span.copy_start in line.starts
            assert span.copy_end in line.ends
        assert rules.max_lost_s is not None or span.exact
    assert all(a.end <= b.start for a, b in pairwise(spans))
    told = loss(line, parts, spans, rules)
    assert told.kept_s + told.snapped_s + told.short_s <= line.span_s(0, len(index.pts)) + 1e-6
    assert told.snapped_s > -1e-6


@settings(max_examples=25, deadline=None)
@given(packets())
def test_a_copy_that_ends_cleanly_holds_exactly_the_frames_before(index: PacketIndex) -> None:
    shown = np.sort(index.pts)
    for end in timeline(index).ends.tolist():
        assert sorted(index.pts[:end].tolist()) == shown[:end].tolist()


def test_no_cut_frame_is_mixed_and_shots_are_what_is_left() -> None:
    line = Timeline(np.arange(101) / 24, np.array([0]), np.array([100]))
    cuts = cut_list([(40, 0), (60, 10)], 100)
    assert shots(line, cuts) == [(0, 40), (40, 60), (70, 100)]
    assert shots(line, []) == [(0, 100)]


def test_edges_are_encoded_only_where_more_would_be_lost_than_allowed() -> None:
    line = Timeline(np.arange(241) / 24, np.array([0, 48, 96, 144, 192]), np.array([48, 96, 144, 192, 240]))
    shot = [(50, 238)]
    copied = plan(line, shot, ClipRules(1, 10))
    assert [(s.start, s.end) for s in copied] == [(96, 192)]
    exact = plan(line, shot, ClipRules(1, 10, max_lost_s=0.0))
    assert [(s.start, s.end, s.copy_start, s.copy_end) for s in exact] == [(50, 238, 96, 192)]
    some = plan(line, shot, ClipRules(1, 10, max_lost_s=1.95))
    assert [(s.start, s.end) for s in some] == [(96, 192)]
