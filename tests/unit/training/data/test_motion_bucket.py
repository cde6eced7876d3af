"""The motion bucket: known motions measured, and a map that is monotone and inverts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.ndimage import shift as subpixel_shift

from model.errors import DataError
from training.data.motion_bucket import HIGHEST_BUCKET, LOWEST_BUCKET, MotionMap, measure_flow

buckets = st.integers(LOWEST_BUCKET, HIGHEST_BUCKET)
flows = st.floats(0, 100, allow_nan=False)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), height / 25, mode="wrap")
    spread = (noise - noise.min()) / np.ptp(noise)
    return spread * 255


def pan(height: int, width: int, pixels_a_frame: float, frames: int = 6) -> np.ndarray:
    """A picture that wraps around, moved sideways by an exact number of pixels a frame."""
    picture = texture(height, width)
    moved = [subpixel_shift(picture, (0, pixels_a_frame * t), order=3, mode="grid-wrap") for t in range(frames)]
    return np.repeat(np.clip(np.stack(moved), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@given(buckets)
def test_a_bucket_survives_the_way_to_flow_and_back(bucket: int) -> None:
    assert MotionMap().bucket(MotionMap().flow(bucket)) == bucket


@given(flows, flows)
def test_more_flow_is_never_a_lower_bucket(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert LOWEST_BUCKET <= MotionMap().bucket(low) <= MotionMap().bucket(high) <= HIGHEST_BUCKET


@given(st.floats(0.003, 0.6))
def test_flow_and_its_bucket_lie_within_half_a_bucket(flow: float) -> None:
    motion = MotionMap()
    octaves = np.log2(motion.flow(motion.bucket(flow)) / flow)
    assert abs(octaves) <= 0.5 / motion.buckets_per_octave + 1e-9


def test_doubling_the_flow_adds_an_octave() -> None:
    assert [MotionMap().bucket(flow) for flow in (0.02, 0.04, 0.08)] == [96, 128, 160]


def test_a_still_is_bucket_one() -> None:
    still = np.repeat(pan(128, 224, 0.0, 1), 5, axis=0)
    assert measure_flow(still, 8) < 1e-3
    assert MotionMap().bucket(measure_flow(still, 8)) == LOWEST_BUCKET


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0, 4.0])
def test_a_pan_is_measured_as_it_moves(speed: float) -> None:
    expected = speed / 128 * 8
    assert measure_flow(pan(128, 224, speed), 8) == pytest.approx(expected, rel=0.12)


def test_resolution_does_not_change_the_measure() -> None:
    assert measure_flow(pan(256, 448, 4.0), 8) == pytest.approx(measure_flow(pan(128, 224, 2.0), 8), rel=0.08)


def test_frame_rate_does_not_change_the_measure() -> None:
    assert measure_flow(pan(128, 224, 1.0), 24) == pytest.approx(measure_flow(pan(128, 224, 2.0), 12), rel=0.08)


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), 8.0),
        (np.zeros((2, 8, 8), np.uint8), 8.0),
        (np.zeros((2, 8, 8, 3), np.float32), 8.0),
        (np.zeros((2, 8, 8, 3), np.uint8), 0.0),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan")),
    ],
)
def test_what_is_no_clip_is_refused(frames: np.ndarray, fps: float) -> None:
    with pytest.raises(DataError):
        measure_flow(frames, fps)


@pytest.mark.parametrize("flow", [-0.1, float("nan"), float("inf")])
def test_a_flow_that_cannot_be_is_refused(flow: float) -> None:
    with pytest.raises(DataError, match="flow must be"):
        MotionMap().bucket(flow)


@pytest.mark.parametrize("bucket", [0, 256, float("nan")])
def test_a_bucket_out_of_range_is_refused(bucket: float) -> None:
    with pytest.raises(DataError, match="from 1 to 255"):
        MotionMap().flow(bucket)


def test_constants_must_make_sense() -> None:
    with pytest.raises(DataError, match="positive and finite"):
        MotionMap(buckets_per_octave=0)
