"""The full-size benchmark works end to end at the tiny size on a CPU, and says of nothing that it was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.svd_xt import report
from benchmarks.svd_xt_gpu import main


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # as for its users, to whom a deprecation in a library is no error
def test_the_program_measures_compares_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["svd_xt_gpu", "--size", "tiny", "--device", "cpu", "--json", "out.json"]
    parts = ["--repeats", "1", "--steps", "2", "--parts", "ceiling,flops,ours,equality"]
    monkeypatch.setattr(sys, "argv", [*common, *parts])
    main()
    figures = json.loads((tmp_path / "out.json").read_text())
    assert not [part for part, measured in figures.items() if "error" in measured], figures
    assert figures["equality"]["equal"]
    assert figures["flops"]["tflop"] > 0
    assert figures["ours"]["end_to_end"]["median_s"] > 0
    assert "| diffusers, eager | not yet measured |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*common, "--table", "--write"])
    with pytest.raises(SystemExit, match="svd-xt only"):
        main()


def test_what_was_not_measured_says_so() -> None:
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
