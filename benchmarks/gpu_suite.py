"""Fifteen minutes of one GPU in two calls: stages with a bound in seconds, and their figures in JSON after each.

    python -m benchmarks.gpu_suite --plan                 the stages of both calls, with their seconds
    python -m benchmarks.gpu_suite --call 1 --json F      at most ten minutes: ceilings, correctness, speed, profile
    python -m benchmarks.gpu_suite --call 2 --json F      at most 170 s, on call 1's warm compiler cache
    python -m benchmarks.gpu_suite --rehearse --json F    both calls at the smallest size on a CPU, compiling nothing
    python -m benchmarks.gpu_suite --write --json F       measure nothing; put F's tables into benchmarks/RESULTS.md

Three workers compile from the start (diffusers' UNet; our blocks; ours with 8-bit floats) while this process checks
correctness, and share one compiler cache; a rehearsal runs the same code and compiles nothing. Whatever is timed is
timed alone, under a file lock. A stage that runs out of its seconds, or fails, is recorded with its error, and the next
one begins; a call that is cut off leaves the figures it had. Weights are random at the real size.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import kernels as kernel_cases
from benchmarks.entry import run_main
from benchmarks.results import write_section
from benchmarks.svd_xt import report
from benchmarks.svd_xt.bench import Bench, relieve
from benchmarks.svd_xt.parts import PARTS, compiled_by_torch, in_bfloat16, ready, with_fp8
from benchmarks.svd_xt_gpu import about
from model.denoiser import BackendOptions
from model.optimized.kernels.block_ops import BlockOps
from model.optimized.kernels.choice import seconds, trials

BEGIN, END = "<!-- gpu_suite begin -->", "<!-- gpu_suite end -->"
WORKERS = ("diffusers-compiled", "ours-compiled", "ours-fp8")
COMPILE_THREADS = "5"
Figures = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """What the stages of a run share.

    Args:
        file: of the figures; beside it lie the lock and the workers' own figures.
    """

    bench: Bench
    file: Path
    rehearsal: bool

    @property
    def lock(self) -> Path:
        """Held by whoever times."""
        return self.file.with_suffix(".lock")

    def worker_file(self, part: str) -> Path:
        """Figures of a worker."""
        return self.file.with_suffix(f".{part}.json")


@dataclass(frozen=True)
class Stage:
    """A piece of a call.

    Args:
        seconds: after which it is given up.
        of: what it is for, in the plan.
        before_workers: whether the workers, once they have compiled, wait for it before they measure.
    """

    name: str
    call: int
    seconds: int
    run: Callable[[Suite, Figures], Figures]
    of: str
    before_workers: bool = False


@contextmanager
def alone(suite: Suite) -> Iterator[None]:
    """The lock, under which nothing else is timed."""
    with suite.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def part(name: str) -> Callable[[Suite, Figures], Figures]:
    """A part of the full-size benchmark (benchmarks.svd_xt.parts) as a stage."""

    def run(suite: Suite, figures: Figures) -> Figures:
        return PARTS[name](suite.bench, figures)

    return run


def memory(suite: Suite, _: Figures) -> Figures:
    """GB/s of a copy: what no kernel that is bound by memory exceeds; and TFLOP/s of a level-one convolution."""
    device, count = suite.bench.device, 2**20 if suite.rehearsal else 2**30
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = seconds(lambda: target.copy_(source), device)
    wide, side = (8, 8) if suite.rehearsal else (320, 72)
    conv = torch.nn.Conv2d(wide, wide, 3, padding=1, device=device, dtype=suite.bench.dtype)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    x = torch.randn(50, wide, side, 128, device=device, dtype=suite.bench.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        convolved = seconds(lambda: conv(x), device)
    return {"gb_per_s": 2 * count / taken / 1e9, "conv_tflops": 18 * wide**2 * x[:, 0].numel() / convolved / 1e12}


def kernels(suite: Suite, _: Figures) -> Figures:
    """Each kernel's worst difference from float64, and its time against torch's operations at the clip's size."""
    bench, found = suite.bench, {}
    if bench.device.type == "cuda":
        for case in kernel_cases.CASES:
            found[case.name] = {str(one): kernel_cases.worst(case, one, bench.device) for one in kernel_cases.DTYPES}
    size, latent = bench.preset.unet, bench.latent
    clip = (latent.num_frames, latent.height * latent.width, size.channels[0])
    times = {}
    for name, run in trials(clip, size.heads[0], bench.device, bench.dtype).items():
        both = [BlockOps(()), BlockOps((name,))] if bench.device.type == "cuda" else [BlockOps(())]
        with torch.inference_mode():
            own = [seconds(partial(run, ops), bench.device) for ops in both]
        times[name] = {"torch_s": own[0], "kernel_s": own[1] if len(own) > 1 else None}
    return {"worst": found, "times": times}


def tests(suite: Suite, _: Figures) -> Figures:
    """tests/gpu in one pytest call: the engine's contract, graphs, memory, training steps."""
    folder = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    command += ["--collect-only"] if suite.rehearsal else ["--timeout=60"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600 if suite.rehearsal else 170, check=False
    )
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit": done.returncode, "summary": lines[-1] if lines else done.stderr[-500:], "failed": failed}


def workers(suite: Suite, _: Figures) -> Figures:
    """The figures of the processes that compiled, each timed alone."""
    found: Figures = {}
    while len(found) < len(WORKERS):
        for name in WORKERS:
            if name not in found and suite.worker_file(name).exists():
                found[name] = json.loads(suite.worker_file(name).read_text())
        time.sleep(0.2)
    return found


def profile(suite: Suite, _: Figures) -> Figures:
    """Where the time of one eager step goes: the dearest kernels, of diffusers and of ours."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    bench, tables = suite.bench, {}
    cuda = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if cuda else [])
    inputs = bench.inputs(2)
    sample = torch.cat([inputs.latents, inputs.concat], 2).to(bench.dtype)
    context, plain = inputs.context.to(bench.dtype), bench.plain.unet
    denoiser = ready(bench, "torch")[1]
    steps: dict[str, Callable[[], object]] = {
        "diffusers": lambda: plain(sample, inputs.timestep[0], context, added_time_ids=inputs.vector.to(bench.dtype)),
        "ours": lambda: denoiser(inputs),
    }
    for name, step in steps.items():
        with torch.no_grad():
            step()
            with profiler(activities=activities) as profile:
                step()
        order = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = sorted(profile.key_averages(), key=lambda event: -getattr(event, order))[:15]
        tables[name] = {event.key[:80]: getattr(event, order) / 1000 for event in events}
    return tables


def cudnn(suite: Suite, _: Figures) -> Figures:
    """A guided step with cudnn.benchmark off and on, and with no kernel of ours; at a rehearsal only as served."""
    bench, found = suite.bench, {}
    ways = (
        ("no kernels", BackendOptions(kernels="none"), True),
        ("cudnn.benchmark off", BackendOptions(), False),
        ("as served", BackendOptions(), True),
    )
    for name, tuning, benchmark in ways[-1:] if suite.rehearsal else ways:
        denoiser = ready(bench, "torch", tuning)[1]
        torch.backends.cudnn.benchmark = benchmark and bench.device.type == "cuda"
        inputs = bench.inputs(2)
        found[name] = bench.timed(lambda denoiser=denoiser, inputs=inputs: denoiser(inputs)).as_dict()  # type: ignore[misc]
        relieve()
    return found


def program(module: str, *options: str) -> Callable[[Suite, Figures], Figures]:
    """Another program of this folder, its last lines kept; at a rehearsal only whether it starts."""

    def run(suite: Suite, _: Figures) -> Figures:
        arguments = ["--help"] if suite.rehearsal else list(options)
        limit = 600 if suite.rehearsal else 120
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=limit, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{module}: {done.stderr.strip().splitlines()[-1:]}")
        return {"output": done.stdout.strip().splitlines()[-40:]}

    return run


STAGES = (
    Stage("ceiling", 1, 10, part("ceiling"), "a large matrix product's rate", before_workers=True),
    Stage("memory", 1, 10, memory, "a copy's and a convolution's rate", before_workers=True),
    Stage("flops", 1, 10, part("flops"), "TFLOP of the unmodified network, on the meta device", before_workers=True),
    Stage("kernels", 1, 30, kernels, "each kernel against float64, and its time against torch's", before_workers=True),
    Stage("tests", 1, 110, tests, "tests/gpu, while the workers compile", before_workers=True),
    Stage("equality", 1, 40, part("equality"), "three full-size steps equal diffusers'", before_workers=True),
    Stage("diffusers-eager", 1, 60, part("diffusers-eager"), "5 steps, decodes, 2 videos", before_workers=True),
    Stage("ours", 1, 50, part("ours"), "the same, and mp4 apart", before_workers=True),
    Stage("compiled", 1, 130, workers, "the workers' figures, each timed alone"),
    Stage("profile", 1, 25, profile, "the dearest kernels of a step"),
    Stage("attention", 1, 20, part("attention"), "attention kernels at both shapes"),
    Stage("curve", 1, 40, part("curve"), "a call by batch slots and by frames"),
    Stage("cudnn", 1, 35, cudnn, "what cudnn.benchmark and our kernels are worth"),
    Stage("ours-graphed", 2, 60, part("ours-graphed"), "compiled and replayed as CUDA graphs"),
    Stage("ays", 2, 30, part("ays"), "ten steps"),
    Stage("reuse", 2, 30, part("reuse"), "deep features reused"),
    Stage(
        "engine",
        2,
        50,
        program("benchmarks.step_batching", "--callers", "1", "4", "--videos", "1"),
        "callers side by side",
    ),
)
LIMITS = {1: 580, 2: 170}
"""Seconds of a call: no stage begins after them."""


def plan() -> str:
    """The stages of both calls; `by` is when a stage is over at the latest, if all before it took their whole bound."""
    lines = []
    for call, limit in LIMITS.items():
        lines.append(f"call {call}: at most {limit} s, and no stage begins after them")
        end = 0
        for stage in STAGES:
            if stage.call == call:
                end += stage.seconds
                lines.append(f"  {stage.name:16} {stage.seconds:4} s, by {min(end, limit):4} s  {stage.of}")
    return "\n".join(lines)


def run_call(suite: Suite, call: int, figures: Figures) -> None:
    """Every stage of a call; the figures are written after each."""
    started = time.monotonic()
    stages = [stage for stage in STAGES if stage.call == call]
    first = [stage for stage in stages if stage.before_workers]
    processes = []
    if first:
        for name in WORKERS:
            suite.worker_file(name).unlink(missing_ok=True)
        with alone(suite):
            processes = [_worker(suite, name) for name in WORKERS]
            _run_stages(suite, first, figures, started)
    _run_stages(suite, [stage for stage in stages if not stage.before_workers], figures, started)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def _run_stages(suite: Suite, stages: list[Stage], figures: Figures, started: float) -> None:
    for stage in stages:
        left = int(LIMITS[stage.call] - (time.monotonic() - started))
        if left <= 0 and not suite.rehearsal:
            figures[stage.name] = {"error": {"type": "TimeoutError", "message": "not begun: the call's time was up"}}
            continue
        begun = time.monotonic()
        torch.compiler.reset()  # a stage's recompilations do not count against the next one's limit
        try:
            with at_most(min(stage.seconds, left) if not suite.rehearsal else 600):
                found = stage.run(suite, figures)
        except Exception as error:  # noqa: BLE001 - whatever fails, the others are measured
            found = {"error": {"type": type(error).__name__, "message": str(error)[:2000] or "(no message)"}}
        own = {"stage_s": round(time.monotonic() - begun, 2)}
        # A stage of several systems gives each its own entry, as the table has them.
        figures.update(found if stage.name == "compiled" and "error" not in found else {stage.name: found | own})
        _save(suite.file, figures)
        print(f"{stage.name}: {own['stage_s']} s {found.get('error', '')}", flush=True)
        relieve()


def _save(file: Path, figures: Figures) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=1) + "\n")
    partial.replace(file)


def _worker(suite: Suite, name: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(suite.file.parent / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": COMPILE_THREADS,
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
    }
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--worker", name, "--json", str(suite.file)]
    command += ["--rehearse"] if suite.rehearsal else []
    return subprocess.Popen(command, env=environment)


def work(suite: Suite, name: str) -> None:
    """A worker: compile by calling once, then wait for the lock and measure, with what is now in the cache."""
    try:
        _warm_up(suite.bench, name)
        with alone(suite):
            figures = PARTS[name](suite.bench, {})
    except Exception as error:  # noqa: BLE001 - the figures say what failed
        figures = {"error": {"type": type(error).__name__, "message": str(error)[:2000]}}
    _save(suite.worker_file(name), figures)


def _warm_up(bench: Bench, name: str) -> None:
    inputs = bench.inputs(2)
    if name == "ours-compiled":
        ready(bench, "torch-compiled")[1](inputs)
        return
    if name == "ours-fp8":
        ready(in_bfloat16(bench), "torch-compiled", with_fp8(bench))[1](inputs)
        return
    sample = torch.cat([inputs.latents, inputs.concat], 2).to(bench.dtype)
    unet = compiled_by_torch(bench)
    with torch.no_grad():
        unet(
            sample, inputs.timestep[0], inputs.context.to(bench.dtype), added_time_ids=inputs.vector.to(bench.dtype),
            return_dict=False,
        )  # fmt: skip


def section(figures: Figures) -> str:
    """The tables for RESULTS.md; what was not measured says so."""
    text = report.section(figures).replace("benchmarks.svd_xt_gpu --write", "benchmarks.gpu_suite --write --json F")
    lines = [text, "| kernel | torch, ms | ours, ms |", "|---|---|---|"]
    for name, own in figures.get("kernels", {}).get("times", {}).items():
        lines.append(f"| {name} | {_ms(own['torch_s'])} | {_ms(own['kernel_s'])} |")
    if len(lines) == 3:
        lines.append(f"| all | {report.MISSING} | {report.MISSING} |")
    tests_ = figures.get("tests", {}).get("summary", report.MISSING)
    rates = figures.get("memory", {})
    lines += ["", f"- tests/gpu: {tests_}."]
    lines += [f"- A copy: {rates['gb_per_s']:.0f} GB/s." if "gb_per_s" in rates else f"- A copy: {report.MISSING}."]
    for name, own in figures.get("cudnn", {}).items():
        if isinstance(own, dict) and "median_s" in own:
            lines.append(f"- A guided step, {name}: {_ms(own['median_s'])} ms.")
    for name, own in figures.get("profile", {}).items():
        if isinstance(own, dict):
            dearest = ", ".join(f"`{key}` {value:.1f} ms" for key, value in list(own.items())[:8])
            lines.append(f"- Where a step of {name} goes: {dearest}.")
    return "\n".join([*lines, ""])


def _ms(value: float | None) -> str:
    return report.MISSING if value is None else f"{1000 * value:.3f}"


def write(figures: Figures) -> None:
    """Put the section between its markers in RESULTS.md; only a GPU's full size belongs there."""
    run = figures.get("run", {})
    if run.get("size") != "svd-xt" or str(run.get("device", "cpu")).startswith("cpu"):
        raise SystemExit("RESULTS.md takes figures of a GPU at svd-xt's size only")
    write_section(BEGIN, END, section(figures))


def rehearsal_bench() -> Bench:
    """The smallest networks, eager on a CPU: two frames of 32x32, two steps."""
    bench = Bench("tiny", torch.device("cpu"), torch.float32, 2, 1, rehearsal=True)
    bench.preset = replace(bench.preset, num_frames=2, height=32, width=32)
    return bench


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call", type=int, choices=sorted(LIMITS))
    parser.add_argument("--json", type=Path, default=Path("gpu_suite.json"))
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--worker", choices=WORKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(plan())
        return
    file = options.json.resolve()
    figures: Figures = json.loads(file.read_text()) if file.exists() and not options.worker else {}
    if options.write:
        write(figures)
        return
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; try --rehearse, or --plan")
    if options.rehearse:
        bench = rehearsal_bench()
        if not options.worker:
            print(plan(), flush=True)
    else:
        bench = Bench("svd-xt", torch.device("cuda"), torch.float16, 25, 5)
    suite = Suite(bench, file, options.rehearse)
    if options.worker:
        work(suite, options.worker)
        return
    figures["run"] = about(bench)
    for call in [options.call] if options.call else sorted(LIMITS):
        run_call(suite, call, figures)
    print(report.table(figures))


if __name__ == "__main__":
    run_main(main)
