"""Later stages of a clip: sizes, windows and their frames, and what continues a clip without a seam."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from model.interpolation import plan_interpolation
from model.stages import MAX_FRAMES, NO_STAGES, Stages, UpscaleStage, continue_clip, plan_extension
from tests.support.fakes import model_entry

STILL = model_entry(name="still", num_frames=(5, 9))
TEXT = model_entry("text-to-video", num_frames=(6,))
BETWEEN = model_entry("frame-interpolation")
ORBIT = model_entry("multi-view", defaults={**STILL.defaults, "elevation": 0.0})


@given(begin=st.sampled_from([5, 9]), more=st.integers(1, 200))
def test_windows_add_up_to_the_whole(begin: int, more: int) -> None:
    stage = plan_extension(STILL, STILL.resolve({"num_frames": begin}, 1), begin + more)
    kept = [stage.window_frames(index) for index in range(stage.windows)]
    assert begin + sum(kept) == stage.num_frames
    assert all(0 < count <= stage.params.num_frames - 1 for count in kept)
    assert all(count == stage.params.num_frames - 1 for count in kept[:-1])


def test_a_window_has_the_clip_s_own_settings() -> None:
    first = STILL.resolve({"motion_bucket_id": 9, "num_inference_steps": 3, "fps": 12}, 5)
    window = plan_extension(STILL, first, 20).params
    assert (window.motion_bucket_id, window.num_inference_steps, window.fps, window.seed) == (9, 3, 12, 5)
    of_text = plan_extension(STILL, TEXT.resolve({"prompt": "a fox", "fps": 12}, 5), 20)
    assert (of_text.params.fps, of_text.params.num_frames, of_text.begin) == (12, 9, 6)


@pytest.mark.parametrize("frames", [1, 5, MAX_FRAMES + 1])
def test_a_length_that_is_none(frames: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_extension(STILL, STILL.resolve({"num_frames": 5}, 1), frames)
    assert caught.value.param == "num_frames"


def test_what_cannot_go_on() -> None:
    with pytest.raises(InvalidRequest, match="moving scene"):
        plan_extension(STILL, ORBIT.resolve({}, 1), 40)
    with pytest.raises(InvalidRequest, match="cannot go on"):
        plan_extension(TEXT, STILL.resolve({}, 1), 40)
    large = model_entry(name="large", unit=64, num_frames=(5,), height=128, width=128)
    with pytest.raises(InvalidRequest, match="cannot be extended"):
        plan_extension(large, STILL.resolve({}, 1), 40)


def test_sizes_and_steps_count_every_stage() -> None:
    first = STILL.resolve({"num_frames": 5}, 1)
    stages = Stages(plan_extension(STILL, first, 12), plan_interpolation(BETWEEN, first), UpscaleStage(3))
    size = stages.size(first)
    assert (size.num_frames, size.fps, size.height, size.width) == (45, 28, 192, 288)
    assert stages.steps(first) == {"extend": 2 * 4, "interpolate": 11 * 4, "upscale": 45}
    assert bool(stages)
    assert not NO_STAGES
    assert NO_STAGES.steps(first) == {}


def test_they_are_stored_as_json_and_found_again() -> None:
    first = STILL.resolve({"num_frames": 5}, 3)
    stages = Stages(plan_extension(STILL, first, 12), plan_interpolation(BETWEEN, first), UpscaleStage(2, "net", "ab"))
    assert Stages.from_dict(json.loads(json.dumps(stages.as_dict())), 3) == stages
    assert Stages.from_dict({}, 3) == NO_STAGES
    with pytest.raises((KeyError, TypeError, InvalidRequest)):
        Stages.from_dict({"extend": {"model": "x"}}, 3)
    with pytest.raises(InvalidRequest):
        UpscaleStage(5)


def scene(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (32, 48, 3), np.uint8)


def test_a_window_without_drift_stays_as_it_is() -> None:
    still = scene()
    frames, drift = continue_clip(still, still, np.stack([still, np.roll(still, 1, 0), np.roll(still, 2, 1)]))
    assert np.array_equal(frames, np.stack([np.roll(still, 1, 0), np.roll(still, 2, 1)]))
    assert (drift.found, drift.left) == (0.0, 0.0)


@given(shift=st.integers(-20, 20), frames=st.integers(2, 9))
def test_the_seam_has_no_step_and_half_of_the_drift_is_taken_back(shift: int, frames: int) -> None:
    """A decoder's constant offset is gone at the seam; a drift that grows along the window is halved at its end."""
    still = scene()
    offset = 5
    grown = [still.astype(int) + offset + shift * index // (frames - 1) for index in range(frames)]
    window = np.clip(np.stack(grown), 0, 255).astype(np.uint8)
    made, drift = continue_clip(still, still, window)
    first_step = abs(float(made[0].mean()) - float(still.mean()))
    assert first_step <= abs(shift) / (frames - 1) + 1.5
    assert drift.found == pytest.approx(abs(shift), abs=1.5)
    assert drift.left == pytest.approx(abs(shift) / 2, abs=1.5)


def test_flat_frames_do_not_divide_by_zero() -> None:
    flat = np.full((4, 8, 8, 3), 90, np.uint8)
    frames, drift = continue_clip(np.full((8, 8, 3), 100, np.uint8), flat[0], flat)
    assert frames.shape == (3, 8, 8, 3)
    assert (drift.found, drift.left) == (10.0, 5.0)
