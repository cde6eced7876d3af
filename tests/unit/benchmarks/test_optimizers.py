"""How two curves of losses are compared: by iteration, after the first third."""

from __future__ import annotations

import pytest

from benchmarks.optimizers import compared


def test_the_ratio_is_of_the_last_two_thirds_and_lies_in_its_interval() -> None:
    adamw = [9.0, 9.0, 1.0, 2.0, 4.0, 8.0]
    muon = [1.0, 1.0, 0.9, 1.6, 3.6, 6.4]
    found = compared(adamw, muon)
    assert found["ratio"] == pytest.approx(0.85)
    low, high = found["interval"]
    assert 0.8 - 1e-9 <= low < 0.85 < high <= 0.9 + 1e-9


def test_equal_curves_are_one() -> None:
    found = compared([3.0, 2.0, 1.0], [3.0, 2.0, 1.0])
    assert found["ratio"] == 1.0 and found["interval"] == (1.0, 1.0)
