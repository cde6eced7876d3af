"""NVIDIA's AIPerf against `serve` at 1, 2, 4 and 8 callers, its own report beside the service's metrics.

    python -m benchmarks.aiperf_load [--aiperf PROGRAM] [--callers 1 2 4 8] [--requests 4] [--write]

AIPerf is not installed with this project; `uv pip install aiperf` into an environment of its own is the quickest way.
Each row is one run of `aiperf profile --endpoint-type video_generation --download-video-content` with the extra inputs
of its guide for video servers; its tokenizer is the folder of the shipped text-to-video checkpoint, so that it asks no
hub. "AIPerf" columns are read from its JSON report, "service" columns from /jobs and /metrics of the same run. The
program ends with 1 if AIPerf counts an error.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from benchmarks.entry import run_main
from benchmarks.results import write_section
from model.errors import StillmotionError
from model.sources.source import find

MODEL: Final = "mini-text-to-video"
EXTRAS: Final = ("size:128x64", "num_inference_steps:2", "seed:42", "fps:6")
PHASES: Final = ("encode", "denoise", "decode", "mux")
_READY_S: Final = 600.0
_BEGIN: Final = "<!-- aiperf_load: written by python -m benchmarks.aiperf_load --write -->"
_END: Final = "<!-- end of aiperf_load -->"
_PHASE: Final = re.compile(r'^stillmotion_phase_seconds_(sum|count)\{.*phase="(\w+)"\} (\S+)$', re.MULTILINE)


def aiperf_command(program: str, url: str, callers: int, requests: int, folder: Path, tokenizer: Path) -> list[str]:
    """One run of AIPerf, as its guide writes it."""
    return [
        *(program, "profile", "--model", MODEL, "--endpoint-type", "video_generation", "--url", url),
        *("--download-video-content", "--tokenizer", str(tokenizer), "--prompt-input-tokens-mean", "12"),
        *("--concurrency", str(callers), "--request-count", str(requests), "--ui", "none"),
        *("--output-artifact-dir", str(folder), "--extra-inputs", *EXTRAS),
    ]


def phase_seconds(metrics: str) -> dict[str, tuple[float, float]]:
    """Sum of seconds and count of jobs for each phase, over models, from the text of /metrics."""
    found: dict[str, dict[str, float]] = {phase: {"sum": 0.0, "count": 0.0} for phase in PHASES}
    for kind, phase, value in _PHASE.findall(metrics):
        if phase in found:
            found[phase][kind] += float(value)
    return {phase: (values["sum"], values["count"]) for phase, values in found.items()}


def report_row(
    callers: int, report: Mapping[str, Any], before: str, after: str, jobs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What AIPerf reports of a run, and what the service says of the same jobs; seconds.

    Args:
        report: profile_export_aiperf.json.
        before: /metrics as text before the run, `after` behind it.
        jobs: the run's jobs as /jobs has them.
    """
    latency, inference = report["request_latency"], report["video_inference_time"]
    was, now = phase_seconds(before), phase_seconds(after)
    phases = {phase: (now[phase][0] - was[phase][0]) / max(1.0, now[phase][1] - was[phase][1]) for phase in PHASES}
    took = [job["completed_at"] - job["created_at"] for job in jobs]
    return {
        "callers": callers,
        "requests": int(report["completed_request_count"]["avg"]),
        "error_percent": report["request_error_rate"]["avg"],
        "aiperf_latency_s": [latency[key] / 1000 for key in ("avg", "p50", "p99")],
        "aiperf_inference_s": inference["avg"] / 1000,
        "aiperf_videos_per_minute": 60 * report["request_throughput"]["avg"],
        "service_jobs": len(took),
        "service_latency_s": sum(took) / max(1, len(took)),
        "service_queued_s": sum(job["started_at"] - job["created_at"] for job in jobs) / max(1, len(jobs)),
        "service_phases_s": phases,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| callers | requests | errors | AIPerf: latency mean, p50, p99 | AIPerf: inference | AIPerf: videos a minute "
        "| service: submitted to completed | of which queued | encode, denoise, decode, mux |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        latency = ", ".join(f"{value:.2f}" for value in row["aiperf_latency_s"])
        phases = ", ".join(f"{row['service_phases_s'][phase]:.2f}" for phase in PHASES)
        lines.append(
            f"| {row['callers']} | {row['requests']} | {row['error_percent']:.0f}% | {latency} s "
            f"| {row['aiperf_inference_s']:.2f} s | {row['aiperf_videos_per_minute']:.1f} "
            f"| {row['service_latency_s']:.2f} s | {row['service_queued_s']:.2f} s | {phases} s |"
        )
    return "\n".join(lines)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _until_ready(client: httpx2.Client, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise StillmotionError(f"serve ended with {server.returncode} before it was ready")
        try:
            if client.get("/health/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise StillmotionError(f"serve was not ready within {_READY_S:.0f} s")


def _run(program: str, client: httpx2.Client, url: str, callers: int, requests: int, work: Path) -> dict[str, Any]:
    folder, began = work / f"callers-{callers}", time.time()
    tokenizer = find(MODEL).path / "tokenizer"
    before = client.get("/metrics").text
    command = aiperf_command(program, url, callers, requests, folder, tokenizer)
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    written = folder / "profile_export_aiperf.json"
    if done.returncode or not written.is_file():
        raise StillmotionError(f"AIPerf ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    after, page = client.get("/metrics").text, client.get("/jobs", params={"limit": 100}).json()
    jobs = [job for job in page["data"] if job["created_at"] >= began and job["status"] == "completed"]
    return report_row(callers, json.loads(written.read_text()), before, after, jobs)


def measure(program: str, callers: Sequence[int], requests: int) -> list[dict[str, Any]]:
    """A row for each number of callers, all against one service.

    Raises:
        StillmotionError: `serve` or AIPerf did not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        work, port = Path(folder), _free_port()
        command = [sys.executable, "-m", "cli", "serve", "--model", MODEL, "--port", str(port)]
        command += ["--database-url", f"sqlite:///{work}/jobs.db", "--artifacts", str(work / "files")]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            with httpx2.Client(base_url=url, timeout=60) as client:
                _until_ready(client, server)
                rows = []
                for count in callers:
                    rows.append(_run(program, client, url, count, requests * count, work))
                    print(json.dumps(rows[-1]), flush=True)
                return rows
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aiperf", default="aiperf", help="AIPerf's program [aiperf on the path]")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=int, default=4, help="of each caller")
    parser.add_argument("--write", action="store_true", help="the table into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    program = shutil.which(arguments.aiperf)
    if program is None:
        raise StillmotionError(
            f"no program {arguments.aiperf}; install AIPerf (uv pip install aiperf) or name it: --aiperf"
        )
    rows = measure(program, arguments.callers, arguments.requests)
    print(table(rows))
    if arguments.write:
        write_section(_BEGIN, _END, _section(rows, program))
    if any(row["error_percent"] for row in rows):
        raise SystemExit(1)


def _section(rows: Sequence[Mapping[str, Any]], program: str) -> str:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"## AIPerf\n\n`python -m benchmarks.aiperf_load`: AIPerf {version} against `serve`, {MODEL}, "
        f"`--extra-inputs {' '.join(EXTRAS)}`, each video downloaded; AIPerf's latency "
        f"counts the looks and the download; inference is the `inference_time_s` of our answers as AIPerf reads it."
        f"\n\n{table(rows)}"
    )


if __name__ == "__main__":
    run_main(main)
