"""The cascade against footage whose cuts are known; the long comparison is benchmarks/cut_quality.py."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.training.curation.film import FPS, parts_of
from training.curation.cuts import CASCADE, decide_cuts, scan
from training.curation.records import Cut
from training.curation.synthetic_video import Join, Part, Picture, random_scene, render


def found(parts: list[Part]) -> tuple[list[Cut], list[tuple[str, int, int]]]:
    frames, truths, _ = render(parts)

    def timed() -> Iterator[tuple[Picture, float]]:
        for index, frame in enumerate(frames):
            yield frame, index / FPS

    cuts = decide_cuts(scan(timed()), "source")
    return cuts, [(truth.kind, truth.start, truth.end) for truth in truths]


def test_hard_cuts_are_found_to_the_frame() -> None:
    cuts, truths = found(parts_of([Join("hard")] * 3, frames=20))
    assert [("hard", round(cut.start_s * FPS), round(cut.end_s * FPS)) for cut in cuts] == truths
    assert {cut.source for cut in cuts} == {"source"}


SLOW = (Join("dissolve", 8), Join("dissolve", 24), Join("fade", 6), Join("fade", 12, white=True))


@pytest.mark.parametrize("join", SLOW)
def test_a_slow_transition_is_found_with_its_extent(join: Join) -> None:
    cuts, [(kind, start, end)] = found(parts_of([join], frames=60))
    assert [cut.kind for cut in cuts] == [kind]
    assert abs(cuts[0].start_s * FPS - start) <= 4
    assert abs(cuts[0].end_s * FPS - end) <= 4


@pytest.mark.parametrize("backwards", [False, True])
def test_a_picture_that_is_there_at_once_after_black_begins_with_a_hard_cut(backwards: bool) -> None:
    one, other = (random_scene(seed, 72, 128, 0.005) for seed in (1, 2))
    fading = [(one(k) * (1 - k / 12)).astype(np.uint8) for k in range(1, 13)]
    black = [np.zeros_like(fading[0])] * 10
    frames = [one(0)] * 40 + fading + black + [other(k) for k in range(40)]
    ordered = frames[::-1] if backwards else frames
    cuts = decide_cuts(scan((frame, index / FPS) for index, frame in enumerate(ordered)), "source")
    at = sorted((cut.kind, round(cut.start_s * FPS), round(cut.end_s * FPS)) for cut in cuts)
    assert [kind for kind, _, _ in at] == ["fade", "hard"]
    cut = 40 if backwards else 62
    assert at[1][1:] == (cut, cut)
    assert at[0][1 if backwards else 2] == cut


def test_a_flash_is_no_cut() -> None:
    part = parts_of([], frames=60)[0]
    assert found([Part(part.scene, 60, part.join, flash=30)])[0] == []


def test_fast_pans_are_no_cuts() -> None:
    for seed in range(2):
        scene = random_scene(seed, 72, 128, 0.08)
        assert found([Part(scene, 60, Join("hard"))])[0] == []


def test_a_still_picture_has_none() -> None:
    still = random_scene(1, 72, 128, 0.0)(0)
    assert found([Part(lambda _: still, 60, Join("hard"))])[0] == []


def test_each_level_says_what_it_is() -> None:
    names = [level.description for level in CASCADE]
    assert len(set(names)) == len(names)
    assert {level.fps for level in CASCADE} == {0, 6, 1.5}
    assert len({level.fps for level in CASCADE}) == 3


def test_cuts_of_one_frame() -> None:
    seen = scan([(np.zeros((72, 128, 3), np.uint8), 0.0)])
    assert decide_cuts(seen, "s") == []
