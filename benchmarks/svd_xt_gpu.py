"""Full-size Stable Video Diffusion XT on one GPU: diffusers eager, diffusers compiled, and ours, in one process.

    python -m benchmarks.svd_xt_gpu --write                      on a CUDA device, about nine minutes
    python -m benchmarks.svd_xt_gpu --parts ours,equality,ays    some of it; --resume adds to an earlier --json
    python -m benchmarks.svd_xt_gpu --size tiny --device cpu     whether the program works, in seconds

Random weights at the real size; nothing is fetched. Parts run in turn (svd_xt/parts.py says what each is); one that
fails is recorded with its error and the others go on; after `--minutes` no further part is begun. Figures are kept in
`--json` after every part. A table comes last, and `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE.parent),) if path not in sys.path]

import torch  # noqa: E402

from benchmarks.entry import run_main  # noqa: E402
from benchmarks.results import write_section  # noqa: E402
from benchmarks.svd_xt.bench import Bench, relieve  # noqa: E402
from benchmarks.svd_xt.parts import COMPILING, ON_GPU, PARTS  # noqa: E402
from benchmarks.svd_xt.report import section, table  # noqa: E402

BEGIN, END = "<!-- svd_xt begin -->", "<!-- svd_xt end -->"


def chosen(names_given: str, device: torch.device) -> list[str]:
    """The parts to run: those named, else all that the device is for."""
    if names_given != "all":
        names = names_given.split(",")
        unknown = [name for name in names if name not in PARTS]
        if unknown:
            raise SystemExit(f"no part is called {', '.join(unknown)}; there are: {', '.join(PARTS)}")
        return names
    left_out = frozenset[str]() if device.type == "cuda" else ON_GPU | COMPILING
    return [name for name in PARTS if name not in left_out]


def run(bench: Bench, parts: list[str], figures: dict[str, Any], file: Path, until: float) -> None:
    """Every part that has no figures yet; each error is kept as its part's result."""
    for name in parts:
        if name in figures and "error" not in figures[name]:
            continue
        if time.monotonic() > until:
            print(f"{name}: not begun, the time is up (--minutes)", flush=True)
            continue
        started = time.monotonic()
        try:
            figures[name] = PARTS[name](bench, figures)
        except Exception as error:  # noqa: BLE001 - recorded; the other parts are measured all the same
            figures[name] = {"error": {"type": type(error).__name__, "message": str(error)[:2000] or "no message"}}
        outcome = figures[name].get("error", {}).get("type", "done")
        print(f"{name}: {outcome} after {time.monotonic() - started:.1f} s", flush=True)
        relieve()
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(figures, indent=1) + "\n")
        partial.replace(file)


def about(bench: Bench) -> dict[str, Any]:
    """Where and with what it was measured."""
    cuda = bench.device.type == "cuda"
    software = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": version("diffusers")}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(bench.device) if cuda else f"cpu ({platform.machine()})",
        "software": ", ".join(f"{name} {number}" for name, number in software.items()),
        "size": bench.preset.name,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "steps": bench.steps,
    }


def write(figures: dict[str, Any]) -> None:
    """Put the section between its markers in RESULTS.md."""
    write_section(BEGIN, END, section(figures))


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["svd-xt", "svd", "tiny"], default="svd-xt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="[float16; float32 on a CPU]")
    parser.add_argument("--steps", type=int, help="of a guided generation [25; 2 for tiny]")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", default="all", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further part is begun")
    parser.add_argument("--json", type=Path, default=Path("svd_xt.json"))
    parser.add_argument("--resume", action="store_true", help="keep what --json holds already")
    parser.add_argument("--table", action="store_true", help="measure nothing; show (and --write) what --json holds")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/RESULTS.md")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if (options.resume or options.table) and options.json.exists():
        figures = json.loads(options.json.read_text())
    if not options.table:
        until = time.monotonic() + 60 * options.minutes
        device = torch.device(options.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise SystemExit("there is no CUDA device here; try --size tiny --device cpu, or --table")
        dtype = getattr(torch, options.dtype or ("float16" if device.type == "cuda" else "float32"))
        steps = options.steps or (2 if options.size == "tiny" else 25)
        bench = Bench(options.size, device, dtype, steps, options.repeats)
        figures["run"] = about(bench)
        run(bench, chosen(options.parts, device), figures, options.json, until)
    print(table(figures))
    print(section(figures).split("share of ceiling")[-1].split("\n\n", 1)[-1])
    if options.write:
        if figures and figures.get("run", {}).get("size") != "svd-xt":
            raise SystemExit("RESULTS.md takes figures of --size svd-xt only")
        write(figures)


if __name__ == "__main__":
    run_main(main)
