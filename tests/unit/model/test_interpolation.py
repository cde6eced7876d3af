"""What a chained clip is made of: its length, its seeds, its frames in order, and what cannot be chained."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.catalog import ModelEntry
from model.errors import InvalidRequest
from model.interpolation import InterpolationStage, chained_shape, interleave, pair_seed, plan_interpolation
from model.params import ImageToVideoParams
from model.shapes import VideoShape
from tests.support.fakes import DEFAULTS, model_entry


def entry(task: str, *num_frames: int, **changes: Any) -> ModelEntry:
    defaults = {**DEFAULTS, "elevation": 0.0}
    return model_entry(task, num_frames=num_frames, **{"defaults": defaults, **changes})


BETWEEN = entry("frame-interpolation", 5)


def still(seed: int = 3, **asked: Any) -> ImageToVideoParams:
    params = entry("image-to-video", 1, 4, 25).resolve({"num_frames": 4, **asked}, seed)
    assert isinstance(params, ImageToVideoParams)
    return params


def test_twenty_five_frames_become_ninety_seven() -> None:
    assert chained_shape(VideoShape(25, 576, 1024)) == VideoShape(97, 576, 1024)
    with pytest.raises(InvalidRequest, match="no neighbours"):
        chained_shape(VideoShape(1, 576, 1024))


def test_a_pair_s_settings_are_the_checkpoint_s_own_at_the_clip_s_size_and_four_times_its_rate() -> None:
    chain = plan_interpolation(BETWEEN, still(height=32, width=64, num_inference_steps=9, motion_bucket_id=9))
    assert (chain.model, chain.version) == ("frame-interpolation", "0123456789ab")
    params = chain.params
    assert (params.num_frames, params.height, params.width, params.fps) == (5, 32, 64, 28)
    assert (params.num_inference_steps, params.motion_bucket_id) == (4, 127)
    assert plan_interpolation(BETWEEN, still(fps=30)).params.fps == 60


def test_what_cannot_be_interpolated_is_refused_by_the_field_s_name() -> None:
    orbit = entry("multi-view", 21).resolve({}, 1)
    narrow = entry("frame-interpolation", 5, height=16, width=16, unit=16)
    cases = [
        (BETWEEN, orbit, "image-to-video and text-to-video"),
        (BETWEEN, still(num_frames=1), "no neighbours"),
        (entry("frame-interpolation", 7), still(), "makes 7 frames, not 5"),
        (narrow, still(height=64, width=96), "height must be a multiple of 16 from 16 to 64|width must be"),
        (entry("multi-view", 5), still(), "multi-view"),
    ]
    for model, first, told in cases:
        with pytest.raises(InvalidRequest, match=told) as caught:
            plan_interpolation(model, first)
        assert caught.value.param == "interpolate"


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 126))
def test_a_pair_s_seed_is_the_documented_one(seed: int, index: int) -> None:
    assert pair_seed(seed, index) == int(hashlib.sha256(f"{seed}/{index}".encode()).hexdigest()[:8], 16)


def test_no_two_pairs_of_a_clip_or_of_neighbouring_seeds_share_a_seed() -> None:
    seeds = [pair_seed(seed, index) for seed in range(20) for index in range(24)]
    assert len(set(seeds)) == len(seeds)


def test_each_pair_gets_its_own_seed_and_nothing_else_of_its_own() -> None:
    chain = plan_interpolation(BETWEEN, still(seed=8))
    assert chain.pair(2) == replace(chain.params, seed=pair_seed(8, 2))


def test_it_is_stored_without_the_seed_and_read_back_with_it() -> None:
    chain = plan_interpolation(BETWEEN, still(seed=8))
    told = chain.as_dict()
    assert "seed" not in told["params"]
    assert InterpolationStage.from_dict(told, 8) == chain
    with pytest.raises((TypeError, KeyError)):
        InterpolationStage.from_dict({"model": "x"}, 8)


@given(count=st.integers(2, 9))
def test_a_woven_clip_keeps_every_given_frame_in_its_place(count: int) -> None:
    numbers = np.arange(4 * (count - 1) + 1, dtype=np.uint8)
    expected = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 2, 3, 3))
    between = [expected[4 * index + 1 : 4 * index + 4] for index in range(count - 1)]
    assert np.array_equal(interleave(expected[::4], between), expected)


def test_frames_that_do_not_fit_are_refused() -> None:
    first = np.zeros((3, 2, 3, 3), np.uint8)
    for between in ([first], [first, first[:2]], [first, np.zeros((3, 2, 2, 3), np.uint8)]):
        with pytest.raises(InvalidRequest, match="2 pairs"):
            interleave(first, between)
