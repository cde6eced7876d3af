"""Camera paths: exact warps of a picture, functions of their generator, slow ones and fast ones of every kind."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from training.data import camera_paths
from training.data.camera_paths import KINDS, SLOW_PAN, SLOW_TRAVEL, TRAVEL, Path, draw_path, render_path
from training.data.seeding import generator
from training.metrics.still_itself import still_itself

SIZE = (5, 64, 112)


def picture(seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(20, 235, (40, 60, 3), dtype=np.uint8)
    return cv2.resize(noise, (300, 200), interpolation=cv2.INTER_CUBIC)


def fixed(monkeypatch: pytest.MonkeyPatch, path: Path) -> np.ndarray:
    monkeypatch.setattr(camera_paths, "draw_path", lambda kind, draw: path)
    return render_path(picture(), picture(1), *SIZE, generator(1, 2))


def test_a_clip_is_a_function_of_its_generator() -> None:
    one = render_path(picture(), picture(1), *SIZE, generator(1, 2))
    assert one.shape == (*SIZE, 3) and one.dtype == np.uint8
    assert np.array_equal(one, render_path(picture(), picture(1), *SIZE, generator(1, 2)))
    assert not np.array_equal(one, render_path(picture(), picture(1), *SIZE, generator(1, 3)))


def test_a_pan_goes_as_far_as_it_is_to_and_the_picture_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = fixed(monkeypatch, Path("pan", (0.04, 0.0), 0.0, 0.0, 0.0))
    last = still_itself(clip[0], clip[-1])
    assert last.share > 0.9 and last.moved == pytest.approx(0.04, rel=0.2)
    half = still_itself(clip[0], clip[2])
    assert half.moved == pytest.approx(0.02, rel=0.25), "evenly in time"


def test_a_zoom_and_a_turn_leave_the_middle_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (Path("zoom in", (0, 0), 0.1, 0, 0), Path("turn", (0, 0), 0, 0.08, 0)):
        clip = fixed(monkeypatch, path)
        middle = (slice(30, 34), slice(54, 58))
        assert np.abs(clip[-1][middle].astype(int) - clip[0][middle]).mean() < 12
        assert np.abs(clip[-1].astype(int) - clip[0]).mean() > 5
        assert still_itself(clip[0], clip[-1]).share > 0.85


def test_near_things_pass_far_ones_by_when_the_camera_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.repeat(np.linspace(0, 1, SIZE[1], dtype=np.float32)[:, None], SIZE[2], 1)
    monkeypatch.setattr(camera_paths, "_inverse_depth", lambda height, width, draw: ramp)
    clip = fixed(monkeypatch, Path("dolly", (0.03, 0), 0, 0, 1.5))
    flow = cv2.calcOpticalFlowFarneback(
        *(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (clip[-1], clip[0])), None, 0.5, 3, 15, 3, 5, 1.2, 0
    )
    far, near = flow[4:16, 20:-20, 0].mean(), flow[-16:-4, 20:-20, 0].mean()
    assert near / far == pytest.approx(2.2, rel=0.3)


def test_a_thing_crosses_before_a_picture_that_hardly_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_paths, "KINDS", ("crossing",))
    plain = np.full((200, 300, 3), 128, np.uint8)
    changed = []
    for seed in range(8):
        clip = render_path(plain, np.full((200, 300, 3), 250, np.uint8), *SIZE, generator(seed))
        bright = [float((frame > 200).mean()) for frame in clip]
        changed.append(bright[0] > 0.02 or bright[-1] > 0.02)
        assert set(np.unique(clip)) - {128, 250} <= set(range(128, 251)), "an edge lies between the two"
    assert all(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_moves_of_a_kind_are_drawn_from_slow_to_fast(kind: str) -> None:
    drawn = [draw_path(kind, torch.Generator().manual_seed(seed)) for seed in range(200)]
    sizes = [max(np.hypot(*path.travel), abs(path.zoom) / 4, abs(path.turn) / 4) for path in drawn]
    assert max(sizes) <= TRAVEL[1] and min(sizes) < 3 * TRAVEL[0] and max(sizes) > 5 * min(sizes)
    assert all((path.near > 0) == (kind == "dolly") for path in drawn)


def test_a_slow_pan_goes_one_way_evenly_and_not_far() -> None:
    for seed in range(4):
        path = draw_path(SLOW_PAN, generator(seed, 1))
        assert SLOW_TRAVEL[0] <= path.travel[0] <= SLOW_TRAVEL[1] and path.travel[1] == 0
        clip = render_path(picture(), picture(1), *SIZE, generator(seed, 2), kinds=(SLOW_PAN,))
        # From frame to frame: the flow of the whole way is too far for what measures it, over noise.
        steps = [still_itself(before, after) for before, after in pairwise(clip)]
        assert min(step.share for step in steps) > 0.9
        assert SLOW_TRAVEL[0] * 0.7 < sum(step.moved for step in steps) < SLOW_TRAVEL[1] * 1.3
