"""Where the bottleneck of offline rendering moves as workers are added: a simulation made of measured times.

    python -m benchmarks.batch_plan --driver-s 0.004 --fetch-s 0.01 --mux-s 0.1 --write-s 0.01

Rows go through a network of queues, first come, first served: one reader, the driver's one core, then at a worker its
I/O threads (fetch), its sampler (one video at a time: a batch gains nothing at full size), its mux threads, and
the store that all workers share. A worker holds as many rows as `stillmotion batch` gives it. Simulated are rows
enough to fill every worker several times over; the rate is that of the middle half.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from dataclasses import dataclass
from itertools import count

from benchmarks.entry import run_main

WORKERS = (1, 10, 100, 1000)
STORE_MB_S = 1000.0
"""What an object store or a shared disk is taken to accept: 1 GB/s. An assumption, not a measurement."""
SHAPES = (
    ("25x576x1024 on an H100, 25 steps", 22.64, 1.0, 1),
    ("25x576x1024 on an H100, 10 steps", 11.18, 1.0, 1),
    ("small clips, 0.5 s each", 0.5, 0.1, 1),
    ("the same, as 8 runs with --shard", 0.5, 0.1, 8),
)
"""What a worker renders, seconds a video, its megabytes, and how many runs share the manifest. The first time is from
NVIDIA's model card (TensorRT, H100 PCIe); the second is the same with 10 of its 25 steps (19.10 x 10 / 25 + 3.54); the
third, like all sizes, is assumed."""
HELD = 16
"""Rows that a worker has at once: twice --in-flight, of which half are being fetched for."""
ROWS_A_WORKER = 3 * HELD


@dataclass(frozen=True)
class Costs:
    """Seconds for one row, measured in this repository's own runs on two CPU cores.

    Args:
        driver_s: of the driver's core, for Ray Data's bookkeeping and ours.
        read_s: of the reading task, to read and check it.
        fetch_s, mux_s, write_s: at the worker; `write_s` is there besides the store's own time.
    """

    driver_s: float
    fetch_s: float
    mux_s: float
    write_s: float
    read_s: float = 1 / 4000
    store_mb_s: float = STORE_MB_S


class Station:
    """Servers and their queue."""

    def __init__(self, servers: int) -> None:
        self.servers = self.free = servers
        self.busy_s = 0.0
        self.queue: deque[tuple[int, int]] = deque()


@dataclass(frozen=True)
class Outcome:
    """Videos a second, and how busy each kind of station was (0 to 1)."""

    rate: float
    busy: dict[str, float]

    @property
    def bottleneck(self) -> str:
        """The busiest."""
        return max(self.busy, key=lambda name: self.busy[name])


class Simulation:
    """One run of the network."""

    def __init__(self, workers: int, video_s: float, video_mb: float, costs: Costs, runs: int = 1) -> None:
        self._seconds = {
            "reader": costs.read_s,
            "driver": costs.driver_s,
            "fetch": costs.fetch_s,
            "sampling": video_s,
            "mux": costs.mux_s,
            "store": video_mb / costs.store_mb_s,
            "write": costs.write_s,
        }
        self._path = tuple(self._seconds)
        servers = {"fetch": HELD // 2, "sampling": 1, "mux": 2, "write": HELD // 2}
        self._shared = {"reader": Station(runs), "driver": Station(runs), "store": Station(1)}
        self._own = [{name: Station(many) for name, many in servers.items()} for _ in range(workers)]
        self._workers = workers
        self._events: list[tuple[float, int, int, int, int]] = []
        self._ticket = count()
        self._left = workers * ROWS_A_WORKER
        self._ended: list[float] = []

    def run(self) -> Outcome:
        """From the first row to the last."""
        for slot in range(self._workers * HELD):
            self._admit(slot % self._workers, 0.0)
        now = 0.0
        while self._events:
            now, _, stage, worker, row = heapq.heappop(self._events)
            station = self._station(stage, worker)
            if station.queue:
                self._serve(stage, *station.queue.popleft(), now)
            else:
                station.free += 1
            if stage + 1 < len(self._path):
                self._arrive(stage + 1, worker, row, now)
            else:
                self._ended.append(now)
                self._admit(worker, now)
        return self._outcome(now)

    def _admit(self, worker: int, now: float) -> None:
        if self._left:
            self._left -= 1
            self._arrive(0, worker, self._left, now)

    def _arrive(self, stage: int, worker: int, row: int, now: float) -> None:
        station = self._station(stage, worker)
        if station.free:
            station.free -= 1
            self._serve(stage, worker, row, now)
        else:
            station.queue.append((worker, row))

    def _serve(self, stage: int, worker: int, row: int, now: float) -> None:
        seconds = self._seconds[self._path[stage]]
        self._station(stage, worker).busy_s += seconds
        heapq.heappush(self._events, (now + seconds, next(self._ticket), stage, worker, row))

    def _station(self, stage: int, worker: int) -> Station:
        name = self._path[stage]
        return self._shared[name] if name in self._shared else self._own[worker][name]

    def _outcome(self, end: float) -> Outcome:
        quarter = len(self._ended) // 4
        rate = 2 * quarter / (self._ended[3 * quarter] - self._ended[quarter])
        busy = {}
        for stage, name in enumerate(self._path):
            stations = [self._station(stage, worker) for worker in range(1 if name in self._shared else self._workers)]
            busy[name] = sum(one.busy_s for one in stations) / sum(one.servers for one in stations) / end
        return Outcome(rate, busy)


def plan_table(costs: Costs) -> str:
    """As Markdown."""
    lines = ["| what | workers | videos a minute | of ideal | busiest |", "|---|---|---|---|---|"]
    for what, video_s, video_mb, runs in SHAPES:
        for workers in WORKERS if runs == 1 else WORKERS[-1:]:
            simulation = Simulation(workers, video_s, video_mb, costs, runs).run()
            share, name = simulation.rate * video_s / workers, simulation.bottleneck
            lines.append(
                f"| {what} | {workers:,} | {60 * simulation.rate:,.0f} | {share:.0%} "
                f"| {name} ({simulation.busy[name]:.0%}) |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("driver-s", "fetch-s", "mux-s", "write-s"):
        parser.add_argument(f"--{name}", type=float, required=True)
    print(plan_table(Costs(**vars(parser.parse_args()))))


if __name__ == "__main__":
    run_main(main)
