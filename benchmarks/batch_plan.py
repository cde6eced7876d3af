"""Where the bottleneck of offline rendering moves as workers are added: arithmetic on measured times.

    python benchmarks/batch_plan.py [--driver-s 0.005] [--fetch-s ...] [--mux-s ...]

Workers render, each so many seconds a video. Beside them three things are shared or bounded: a worker's own I/O
threads (fetch, mux and write run beside sampling, and only hurt once they take longer than it), the driver, which
spends some milliseconds of one core on each row, and the store, which takes so many bytes a second. The slowest of
them sets the rate.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

WORKERS = (1, 10, 100, 1000)
STORE_BYTES_S = 1e9
"""What an object store or a shared disk is taken to accept: 1 GB/s. An assumption, not a measurement."""
SHAPES = (("25x576x1024 on an H100, 25 steps", 22.64), ("25x576x1024, 10 steps", 11.2), ("14x128x224, tiny", 0.5))
"""What a worker renders, and seconds a video: the first as NVIDIA's model card has it, the second the same with 10 of
the 25 steps (19.10 x 10 / 25 + 3.54), the third a stand-in for small clips."""


@dataclass(frozen=True)
class Measured:
    """Of one row, in this repository's own run on two CPU cores.

    Args:
        driver_s: of the driver's one core, for Ray Data's bookkeeping and ours.
        threads: that a worker's I/O has.
    """

    fetch_s: float
    mux_s: float
    write_s: float
    video_bytes: float
    driver_s: float = 0.005
    threads: int = 18


def bottleneck(workers: int, video_s: float, costs: Measured) -> tuple[float, str]:
    """Videos a second, and what bounds them."""
    bounds = {
        "sampling": workers / video_s,
        "a worker's I/O threads": workers * costs.threads / (costs.fetch_s + costs.mux_s + costs.write_s),
        "the driver": 1 / costs.driver_s,
        "the store": STORE_BYTES_S / costs.video_bytes,
    }
    name = min(bounds, key=lambda bound: bounds[bound])
    return bounds[name], name


def plan_table(costs: Measured) -> str:
    """As Markdown."""
    lines = ["| what | workers | videos a minute | bound by |", "|---|---|---|---|"]
    for what, video_s in SHAPES:
        for workers in WORKERS:
            rate, name = bottleneck(workers, video_s, costs)
            lines.append(f"| {what} | {workers:,} | {60 * rate:,.0f} | {name} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("fetch-s", "mux-s", "write-s", "video-bytes", "driver-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    print(plan_table(Measured(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
