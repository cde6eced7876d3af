"""Profiles: what was measured is given back, what was not is in proportion, and the batch that pays is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.catalog import PROFILE
from serving.engine.profile import Machine, Profile, read_profile, write_profile

HERE = Machine("cpu", "torch", "float32", 2, False, "2.13.0")
sizes = st.integers(1, 10**7)
times = st.floats(1e-4, 100)


@given(sizes, st.integers(1, 16), times)
def test_what_was_measured_is_given_back(numel: int, places: int, seconds: float) -> None:
    profile = Profile()
    assert profile.call_s(numel, places) is None
    profile.set_call(numel, places, seconds)
    assert profile.call_s(numel, places) == pytest.approx(seconds)
    assert profile.call_s(2 * numel, places) == pytest.approx(2 * seconds)
    assert profile.call_s(numel, 2 * places) == pytest.approx(2 * seconds)


def test_a_batch_between_two_measured_ones_lies_on_their_line() -> None:
    profile = Profile()
    profile.set_call(100, 1, 1.0)
    profile.set_call(100, 4, 2.5)
    assert profile.call_s(100, 2) == pytest.approx(1.5)
    assert profile.call_s(100, 8) == pytest.approx(4.5)


def test_operation_moves_the_figures_slowly() -> None:
    profile = Profile()
    for seconds in (1.0, 2.0, 2.0, 2.0):
        profile.observe_call(100, 2, seconds)
    assert profile.call_s(100, 2) == pytest.approx(2 - 0.8**3)


@pytest.mark.parametrize(
    ("measured", "worth"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.1}, 1),  # batching gains nothing
        ({1: 0.27, 2: 0.46, 4: 0.92}, 2),  # two cores, one place each
        ({1: 1.0, 2: 1.05, 4: 1.3, 8: 2.7}, 4),
        ({1: 0.636, 2: 0.648, 4: 1.266, 8: 2.419}, 2),  # 7 % for four times the wait: noise
        ({1: 1.0, 2: 1.2, 4: 1.5}, 8),  # still gaining at the largest tried: try more
        ({}, 8),
    ],
)
def test_the_batch_that_pays(measured: dict[int, float], worth: int) -> None:
    profile = Profile()
    for places, seconds in measured.items():
        profile.set_call(100, places, seconds)
    assert profile.worth(100, 8) == worth
    for _ in range(9):
        profile.observe_call(100, 2, 10.0)  # with a decoder beside it
    assert profile.worth(100, 8) == worth or not measured


def test_is_kept_beside_the_checkpoint_for_each_machine(tmp_path: Path) -> None:
    profile, other = Profile(), Profile()
    profile.set_call(100, 2, 0.5)
    profile.observe_decode(1000, 0.25)
    profile.observe_encode(0.125)
    other.set_call(100, 2, 0.01)
    gpu = Machine("H100", "torch", "float16", 2, False, "2.13.0")
    assert write_profile(tmp_path, HERE, profile)
    assert write_profile(tmp_path, gpu, other)
    read = read_profile(tmp_path, HERE)
    assert read is not None
    assert read.as_dict() == profile.as_dict()
    assert read_profile(tmp_path, Machine("cpu", "torch", "float32", 4, False, "2.13.0")) is None
    assert [path.name for path in tmp_path.iterdir()] == [PROFILE]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', json.dumps({HERE.key: {"calls": 3}})])
def test_a_file_that_is_none_of_ours_is_measured_over(tmp_path: Path, text: str) -> None:
    (tmp_path / PROFILE).write_text(text)
    assert read_profile(tmp_path, HERE) is None
    assert write_profile(tmp_path, HERE, Profile())
    assert read_profile(tmp_path, HERE) is not None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    assert not write_profile(tmp_path / "absent", HERE, Profile())
