"""What Muon gains on AdamW: the same recipe, rows, noise and iterations, at the same learning rate.

    python -m benchmarks.optimizers mini-frame-interpolation-long --data data/starter [--iterations 100] [--json]

Each starts from the recipe's own start (--networks), warms up for 15 iterations and decays to the end. Iterations have
the same clips and noise in both, so losses are compared one by one; the interval is of their mean ratio over the last
two thirds (1000 bootstrap resamples of iterations).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.entry import run_main
from model.errors import DataError
from training.config import METHODS
from training.data.starter import load_items
from training.metrics.frechet import interval, resamples
from training.recipes import RECIPES
from training.train import train

WARMUP = 15
RESAMPLES = 1000


def losses(recipe: str, data: Path, networks: Path, method: str, iterations: int) -> tuple[list[float], float]:
    """The loss of every iteration, and processor seconds an iteration (all threads, what comes before included)."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for one in networks.iterdir():
            if one.name != recipe:
                (runs / one.name).symlink_to(one.resolve())
        overrides = {"iterations": iterations, "warmup": WARMUP, "method": method, "log_every": 1}
        overrides["checkpoint_every"] = iterations + 1
        began = time.process_time()
        train(
            recipe, data, runs, [f"optim.{name}={value}" for name, value in overrides.items()], False, lambda *_: None
        )
        spent = time.process_time() - began
        lines = (runs / recipe / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], spent / iterations


def compared(adamw: list[float], muon: list[float]) -> dict[str, Any]:
    """Muon's loss over AdamW's, over the last two thirds."""
    ratios = (np.array(muon) / np.array(adamw))[len(adamw) // 3 :]
    drawn = resamples([str(number) for number in range(len(ratios))], RESAMPLES, seed=0)
    return {"ratio": float(ratios.mean()), "interval": interval([float(ratios[rows].mean()) for rows in drawn])}


def main() -> None:
    """Train twice and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, default=Path("data/starter"))
    parser.add_argument("--networks", type=Path, default=Path("runs"), help="runs that the recipe builds on")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    load_items(options.data)  # what is wrong with the dataset is said first
    if not options.networks.is_dir():
        raise DataError(f"no runs in {options.networks}: train what the recipe builds on, or name them by --networks")
    curves, seconds = dict[str, list[float]](), dict[str, float]()
    for method in METHODS:
        curves[method], seconds[method] = losses(
            options.recipe, options.data, options.networks, method, options.iterations
        )
    comparison = compared(curves["adamw"], curves["muon"])
    if options.json:
        print(json.dumps({"recipe": options.recipe, "seconds": seconds, **comparison, "losses": curves}, indent=2))
        return
    span = "{:.3f} [{:.3f}, {:.3f}]".format(comparison["ratio"], *comparison["interval"])
    print(f"{options.recipe}, {options.iterations} iterations: loss of Muon / AdamW {span}")
    print(f"processor seconds an iteration, loading included: Muon {seconds['muon']:.2f}, AdamW {seconds['adamw']:.2f}")


if __name__ == "__main__":
    run_main(main)
