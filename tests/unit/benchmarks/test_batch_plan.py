"""The simulated plan against the arithmetic of its bounds."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def plan(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module; its folder is no package of ours."""
    monkeypatch.syspath_prepend(str(root))
    return import_module("benchmarks.batch_plan")


@pytest.mark.parametrize(
    ("workers", "video_s", "costs", "rate", "busiest"),
    [
        (1, 2.0, {}, 0.5, "sampling"),
        (20, 2.0, {}, 10.0, "sampling"),
        (20, 0.1, {"driver_s": 0.01}, 100.0, "driver"),
        (20, 0.1, {"store_mb_s": 10.0}, 50.0, "store"),
        (4, 0.1, {"mux_s": 1.0}, 8.0, "mux"),
        (4, 0.1, {"fetch_s": 4.0}, 8.0, "fetch"),
    ],
)
def test_the_slowest_station_sets_the_rate(
    plan: Any, workers: int, video_s: float, costs: dict[str, float], rate: float, busiest: str
) -> None:
    cheap = {"driver_s": 1e-5, "fetch_s": 1e-4, "mux_s": 1e-4, "write_s": 1e-4}
    told = plan.Simulation(workers, video_s, 0.2, plan.Costs(**{**cheap, **costs})).run()
    assert told.bottleneck == busiest
    assert told.rate == pytest.approx(rate, rel=0.05)
    assert all(0 <= busy <= 1.0001 for busy in told.busy.values())


def test_several_runs_share_out_the_drivers_work(plan: Any) -> None:
    costs = plan.Costs(driver_s=0.01, fetch_s=1e-4, mux_s=1e-4, write_s=1e-4)
    one, four = (plan.Simulation(20, 0.02, 0.01, costs, runs).run().rate for runs in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.1)
