"""The two calls on a GPU: their plan keeps its seconds, and a rehearsal on a CPU runs the same code."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu_suite import LIMITS, STAGES, Stage, Suite


def test_the_plan_fits_its_calls() -> None:
    for call, limit in LIMITS.items():
        assert sum(stage.seconds for stage in STAGES if stage.call == call) <= limit
    assert sum(LIMITS.values()) <= 900 - 150  # the machine's start and the transfers are of the same fifteen minutes
    text = gpu_suite.plan()
    assert all(stage.name in text and f"{stage.seconds} s" in text for stage in STAGES)
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def suite(tmp_path: Path, rehearsal: bool = False) -> Suite:
    bench: Any = SimpleNamespace(device=torch.device("cpu"))
    return Suite(bench, tmp_path / "figures.json", rehearsal)


def test_a_stage_that_fails_or_takes_too_long_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise RuntimeError("no such kernel")

    def hang(*_: object) -> dict[str, Any]:
        time.sleep(30)
        return {}

    stages = [
        Stage("fails", 1, 5, fail, ""),
        Stage("hangs", 1, 1, hang, ""),
        Stage("works", 1, 5, lambda *_: {"value": 3}, ""),
        Stage("late", 2, 5, lambda *_: {"value": 4}, ""),
    ]
    figures: dict[str, Any] = {}
    gpu_suite._run_stages(suite(tmp_path), stages[:3], figures, time.monotonic())
    gpu_suite._run_stages(suite(tmp_path), stages[3:], figures, time.monotonic() - LIMITS[2])
    assert figures == json.loads((tmp_path / "figures.json").read_text()) | {"late": figures["late"]}
    assert figures["fails"]["error"] == {"type": "RuntimeError", "message": "no such kernel"}
    assert figures["hangs"]["error"]["type"] == "TimeoutError"
    assert figures["works"]["value"] == 3
    assert "not begun" in figures["late"]["error"]["message"]


def test_what_was_not_measured_is_said_so_and_a_rehearsal_is_no_result(tmp_path: Path) -> None:
    text = gpu_suite.section({})
    assert text.count("not yet measured") > 20
    assert not [line for line in text.splitlines() if " ms" in line and any(c.isdigit() for c in line.split("ms")[0])]
    with pytest.raises(SystemExit, match="a GPU at svd-xt's size only"):
        gpu_suite.write({"run": {"size": "tiny", "device": "cpu (x86_64)"}})


@pytest.mark.full  # a quarter of an hour of two cores, most of it for compiling the stage "curve"
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")  # as for its users, to whom a deprecation in a library is no error
def test_a_rehearsal_runs_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--rehearse", "--json", str(file)])
    gpu_suite.main()
    figures = json.loads(file.read_text())
    assert not {name: own["error"] for name, own in figures.items() if "error" in own}
    expected = {stage.name for stage in STAGES} - gpu_suite.ON_GPU - {"compiled"}
    assert expected | set(gpu_suite.WORKERS) <= figures.keys()
    assert figures["equality"]["equal"]
    assert figures["tests"]["exit"] == 0
