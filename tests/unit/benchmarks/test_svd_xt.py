"""The full-size benchmark works end to end at the tiny size on a CPU, and says of nothing that it was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_the_program_measures_compares_and_prints(root: Path, tmp_path: Path) -> None:
    program = [sys.executable, str(root / "benchmarks" / "svd_xt_gpu.py"), "--size", "tiny", "--device", "cpu"]
    options = ["--repeats", "1", "--steps", "2", "--parts", "ceiling,flops,ours,equality", "--json", "out.json"]
    done = subprocess.run([*program, *options], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "out.json").read_text())
    assert not [part for part, figures in found.items() if "error" in figures], found
    assert found["equality"]["equal"]
    assert found["flops"]["tflop"] > 0
    assert found["ours"]["end_to_end"]["median_s"] > 0
    assert "| diffusers, eager | not yet measured |" in done.stdout
    refused = subprocess.run(
        [*program, "--table", "--json", "out.json", "--write"], cwd=tmp_path, capture_output=True, text=True
    )
    assert refused.returncode != 0 and "svd-xt only" in refused.stderr


def test_what_was_not_measured_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    report = import_module("svd_xt.report")
    rows = report.table({}).splitlines()[2:]
    assert rows and all(row.count("not yet measured") == len(report.COLUMNS) - 1 for row in rows)
    found = {
        "flops": {"tflop": 80.0},
        "ceiling": {"tflops": 640.0},
        "ours": {"step": {"median_s": 0.5, "peak_gib": None}, "end_to_end": {"median_s": 10.0, "peak_gib": 9.0}},
        "diffusers-eager": {"end_to_end": {"median_s": 25.0, "peak_gib": 20.0}},
    }
    (ours,) = (row for row in report.table(found).splitlines() if "ours, eager" in row)
    assert "| 500.0 |" in ours and "| 2.50 |" in ours and "| 320.0 | 50 % |" in ours
