"""The engine's policy against first come, first served and request-level batches, on up to 1,000 simulated GPUs.

    python -m benchmarks.policy_sim [--gpus 1,10,100,1000] [--write]

Replays fixed arrival traces (policysim/trace.py) with step times from a table (policysim/costs.py); the policy is the
engine's own code. Prints two tables; `--write` also puts them into benchmarks/RESULTS.md and draws
docs/assets/policy-sim.png. All of it takes about a minute of one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.entry import run_main
from benchmarks.policysim.devices import serve
from benchmarks.policysim.measures import Measures, measure, pooled
from benchmarks.policysim.report import Results, draw, main_table, scale_table
from benchmarks.policysim.schedulers import SCHEDULERS
from benchmarks.policysim.trace import make_trace
from benchmarks.results import write_section

HERE = Path(__file__).resolve().parent
PICTURE = HERE.parent / "docs" / "assets" / "policy-sim.png"
BEGIN, END = "<!-- policy_sim begin -->", "<!-- policy_sim end -->"


TRACES = 20
"""Pooled for one GPU, and as many fewer for more as they see more requests."""


def simulate(devices: int) -> dict[str, Measures]:
    """Every scheduler on the same traces."""
    traces = [make_trace(devices, seed) for seed in range(1, max(1, TRACES // devices) + 1)]
    return {
        name: pooled([measure(trace, serve(trace, devices, make)) for trace in traces])
        for name, make in SCHEDULERS.items()
    }


def write(results: Results) -> None:
    """Replace this program's section of RESULTS.md, or add it, and draw the picture."""
    largest = max(results)
    section = "\n\n".join(
        (
            (HERE / "policysim" / "section.md").read_text().strip(),
            f"At {largest:,} GPUs:",
            main_table(results[largest]),
            "By number of GPUs:",
            scale_table(results),
            "![slowdown over time, its distribution, and by number of GPUs](../docs/assets/policy-sim.png)",
        )
    )
    write_section(BEGIN, END, f"\n{section}\n")
    draw(results, PICTURE)


def main() -> None:
    """Read the arguments, simulate, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="1,10,100,1000", help="numbers of simulated GPUs, with commas")
    parser.add_argument("--write", action="store_true", help="write RESULTS.md and the picture")
    arguments = parser.parse_args()
    began = time.process_time()
    results = {devices: simulate(devices) for devices in map(int, arguments.gpus.split(","))}
    print(main_table(results[max(results)]), scale_table(results), sep="\n\n")
    print(f"\n{time.process_time() - began:.0f} s of processor time")
    if arguments.write:
        write(results)


if __name__ == "__main__":
    run_main(main)
