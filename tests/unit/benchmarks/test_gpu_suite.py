"""The two calls on a GPU: their plan keeps its seconds, and a rehearsal on a CPU runs the same code."""

from __future__ import annotations

import ast
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


COVERED = {
    "contract, decoding beside steps": "test_eight_staggered_jobs_are_their_solo_runs_while_others_decode",
    "kernels": "test_a_kernel_is_as_near_to_float64_as_its_dtype_allows",
    "backends, graphs at alternating shapes": "test_every_backend_gives_the_same_at_alternating_shapes",
    "attention": "test_every_attention_kernel_gives_the_same",
    "no wait for the host within a step": "test_a_step_never_waits_for_the_device",
    "out of memory": "test_out_of_memory_is_contained_and_the_engine_goes_on",
    "LoRAs": "test_a_lora_is_switched_without_a_trace",
    "training": "test_a_step_of_every_recipe_runs_on_the_device",
    "8-bit floats": "test_8_bit_floats_are_near_bfloat16",
    "TensorRT": "test_an_engine_gives_what_torch_gives_at_every_number_of_places",
}
"""What tests/gpu is there for, and a test of each."""


def test_the_tests_of_a_gpu_are_there_and_marked(root: Path) -> None:
    found: set[str] = set()
    for file in (root / "tests" / "gpu").glob("test_*.py"):
        text = file.read_text()
        assert "pytest.mark.gpu" in text, file
        found |= {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert {subject for subject, name in COVERED.items() if name not in found} == set()


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


class Commands:
    """subprocess.run as a record: what a stage would start, and an answer like pytest's."""

    def __init__(self) -> None:
        self.started: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> SimpleNamespace:
        self.started.append(command)
        return SimpleNamespace(returncode=0, stdout="collecting\n41 tests collected\n", stderr="")


SLOWER = frozenset({"diffusers-eager", "profile", "cudnn", "ays", "reuse"})
"""Stages whose code is mostly that of others."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("left_out", [SLOWER, pytest.param(frozenset(), marks=pytest.mark.slow)], ids=["most", "all"])
@pytest.mark.filterwarnings("default")  # as for its users, to whom a deprecation in a library is no error
def test_stages_run_at_the_smallest_size(
    left_out: frozenset[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rehearsal's stages in this process, each once; its compiled parts are eager there, so they are left out."""
    commands = Commands()
    monkeypatch.setattr(gpu_suite.subprocess, "run", commands)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("a rehearsal compiles nothing"))
    rehearsal = Suite(gpu_suite.rehearsal_bench(), tmp_path / "figures.json", True)
    for name in gpu_suite.WORKERS:  # as if they had been timed, and were the fastest
        rehearsal.worker_file(name).write_text(json.dumps({"step": {"median_s": 1e-9}}))
    figures: dict[str, Any] = {}
    for stage in STAGES:
        if stage.name not in {"ours-graphed", *left_out}:
            found = stage.run(rehearsal, figures)
            figures.update(found if stage.name == "compiled" else {stage.name: found})
    assert figures["equality"]["equal"]
    assert figures["ours"]["step"]["median_s"] > 0 < figures["ours"]["encode"]["median_s"]
    assert left_out or {"diffusers", "ours"} == figures["profile"].keys()
    assert figures["kernels"]["times"]["geglu"]["torch_s"] > 0
    assert figures["tests"]["summary"] == "41 tests collected"
    assert [command[-1] for command in commands.started] == ["--collect-only", "--help"]
    assert gpu_suite.section(figures).count("not yet measured") < gpu_suite.section({}).count("not yet measured")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("default")  # as for its users, to whom a deprecation in a library is no error
def test_a_rehearsal_runs_both_calls_with_their_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--rehearse", "--json", str(file)])
    gpu_suite.main()
    figures = json.loads(file.read_text())
    assert not {name: own["error"] for name, own in figures.items() if "error" in own}
    assert {stage.name for stage in STAGES} - {"compiled"} | set(gpu_suite.WORKERS) <= figures.keys()
    assert figures["equality"]["equal"]
    assert figures["tests"]["exit"] == 0
    assert gpu_suite.plan() in capsys.readouterr().out
