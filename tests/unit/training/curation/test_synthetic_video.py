"""What the generator shows is what its truth says."""

import numpy as np

from tests.unit.training.curation.film import parts_of
from training.curation.synthetic_video import PLAIN_FRAMES, Join, Part, Truth, random_parts, render


def test_mixed_frames_are_mixtures_and_the_truth_says_which() -> None:
    parts = parts_of([Join("dissolve", 6), Join("hard")], frames=10)
    frames, truths, count = render(parts)
    shown = list(frames)
    assert truths == [Truth("dissolve", 10, 16), Truth("hard", 26, 26)]
    assert len(shown) == count == 36
    for j in range(6):
        share = (j + 1) / 7
        exact = parts[0].scene(10 + j) * (1 - share) + parts[1].scene(j) * share
        assert np.abs(shown[10 + j] - exact).max() <= 0.5
    assert np.array_equal(shown[9], parts[0].scene(9))
    assert np.array_equal(shown[16], parts[1].scene(6))
    assert np.array_equal(shown[26], parts[2].scene(0))


def test_a_fade_goes_through_plain_frames() -> None:
    frames, (truth,), count = render(parts_of([Join("fade", 4, white=True)], frames=5))
    shown = list(frames)
    assert (truth.start, truth.end) == (5, 5 + 8 + PLAIN_FRAMES)
    assert len(shown) == count == 10 + 8 + PLAIN_FRAMES
    assert all((shown[9 + k] == 255).all() for k in range(PLAIN_FRAMES))
    assert shown[8].mean() > shown[5].mean() > shown[4].mean()


def test_a_flash_is_two_frames_and_no_truth() -> None:
    part = parts_of([], frames=12)[0]
    frames, truths, _ = render([Part(part.scene, 12, part.join, flash=5)])
    bright = [k for k, frame in enumerate(frames) if frame.mean() > part.scene(k).mean() + 30]
    assert truths == []
    assert bright == [5, 6]


def test_random_parts_repeat_and_use_every_join() -> None:
    joins = (Join("hard"), Join("dissolve", 4), Join("fade", 4))
    first, second = (random_parts(3, lambda k, pace: lambda t: np.zeros((2, 2, 3), np.uint8), joins) for _ in range(2))
    assert [(p.frames, p.join, p.flash) for p in first] == [(p.frames, p.join, p.flash) for p in second]
    assert {part.join for part in first[:-1]} == set(joins)
