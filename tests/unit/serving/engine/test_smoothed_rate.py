"""Measured speed."""

from __future__ import annotations

import pytest

from serving.engine.profile import SmoothedRate


def test_knows_nothing_before_the_first_measurement_and_that_one_after_it() -> None:
    pace = SmoothedRate()
    assert pace.seconds_for(3) is None
    pace.observe(2.0, 4)
    assert pace.seconds_for(3) == pytest.approx(1.5)


def test_follows_a_change_within_a_few_steps_without_jumping() -> None:
    pace = SmoothedRate(1.0)
    pace.observe(2.0, 1)
    once = pace.seconds_for(1)
    for _ in range(10):
        pace.observe(2.0, 1)
    assert once is not None
    assert 1.0 < once < 1.5
    assert pace.seconds_for(1) == pytest.approx(2.0, rel=0.05)
