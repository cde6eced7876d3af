"""An hour of everything at once, with a SIGKILL every few minutes: does anything grow, fail, get lost or get doubled?

    python -m benchmarks.soak [--minutes 60] [--out soak/] [--model mini-image-to-video ...]

`stillmotion serve` runs in a process of its own. Two keys submit jobs of three tasks, of mixed sizes, steps, formats
and priorities, with previews, chained interpolation, cancels, dropped event streams, and webhooks to good, failing and
dripping receivers; beside them go the abuses of benchmarks.soak_load. The server is killed every few minutes in the
first two thirds of the time, and lives through the last third. Memory, descriptors, threads and the sizes of database
and artifacts are sampled; ended jobs are removed after six minutes, so that the sizes have a level.

It ends with a table and, where matplotlib is there, a plot; exit code 1 on: growth, a 5xx (but a 503 with Retry-After,
which is how a full or restarting service says when to come again), a job lost, failed or made twice, a video that is
not what its hash says, a webhook that a good receiver did not get.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.entry import run_main
from benchmarks.soak_load import Load
from benchmarks.soak_server import Receivers, Sample, ServeProcess
from model.errors import MissingExtra

MODELS: Final = ("mini-image-to-video", "mini-text-to-video", "mini-frame-interpolation")
_SAMPLE_S: Final = 2.0
_DRAIN_S: Final = 600.0
_WEBHOOK_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Quantity:
    """What must not grow.

    Args:
        unit: for the table.
        slack: growth in its unit that is none: noise, a pool that fills.
        part: growth as a part of the level that is none.
        of_process: it begins anew with each life of the server.
        quantile: of its samples, which is its level; below 0.5 where it rises and falls with what runs at once, so
            that a leak is what stays in quiet moments.
    """

    unit: str
    slack: float
    part: float
    of_process: bool
    quantile: float = 0.5


QUANTITIES: Final = {
    "rss": Quantity("MiB", 48, 0.05, True, 0.2),
    "files": Quantity("", 24, 0.1, True),
    "threads": Quantity("", 6, 0.1, True),
    "database": Quantity("MiB", 2, 0.25, False),
    "artifacts_per_job": Quantity("MiB", 0.1, 0.5, False),
}


def growth(samples: Sequence[Sample], name: str, seconds: float) -> tuple[float, float]:
    """The level early and late: the quantity's quantile in a third of the samples each.

    Of a process's quantity, the samples are those of its last life, without the first quarter, while it fills its
    pools; of others, those after the first sixth of the whole time.
    """
    quantity = QUANTITIES[name]
    if quantity.of_process:
        life = [one for one in samples if one.life == samples[-1].life]
        counted = life[len(life) // 4 :]
    else:
        counted = [one for one in samples if one.t >= seconds / 6]
    values = [float(getattr(one, name)) for one in counted]
    third = max(1, len(values) // 3)
    return _quantile(values[:third], quantity.quantile), _quantile(values[-third:], quantity.quantile)


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))]


def grown(samples: Sequence[Sample], seconds: float) -> list[str]:
    """What has grown, in words."""
    found = []
    for name, quantity in QUANTITIES.items():
        before, after = growth(samples, name, seconds)
        if after - before > max(quantity.slack, quantity.part * before):
            found.append(f"{name} grew from {before:.1f} to {after:.1f} {quantity.unit}".rstrip())
    return found


def table(samples: Sequence[Sample], seconds: float) -> str:
    """A row for each quantity, as Markdown."""
    lines = ["| | most | level early | level late |", "|---|---|---|---|"]
    for name, quantity in QUANTITIES.items():
        before, after = growth(samples, name, seconds)
        most = max(float(getattr(one, name)) for one in samples)
        label = f"{name} ({quantity.unit})" if quantity.unit else name
        lines.append(f"| {label} | {most:.1f} | {before:.1f} | {after:.1f} |")
    return "\n".join(lines)


def plot(samples: Sequence[Sample], kills: Sequence[float], path: Path) -> None:
    """Each quantity over the minutes, and when the server was killed.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtra("the plot", "train") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(QUANTITIES), 1, figsize=(10, 12), sharex=True)
    for axis, (name, quantity) in zip(axes, QUANTITIES.items(), strict=True):
        axis.plot([one.t / 60 for one in samples], [getattr(one, name) for one in samples], linewidth=0.8)
        axis.set_ylabel(f"{name} {quantity.unit}")
        axis.set_ylim(bottom=0)
        for at in kills:
            axis.axvline(at / 60, color="tab:red", alpha=0.3, linewidth=0.8)
    axes[-1].set_xlabel("minutes; red: SIGKILL")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Every sample as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([one.name for one in dataclasses.fields(Sample)])
        writer.writerows([[round(value, 3) for value in dataclasses.astuple(one)] for one in samples])


@dataclass
class Soak:
    """One run.

    Args:
        seconds: of load; ending what is open comes on top.
        kill_every_s: seconds from one start to the next kill.
    """

    server: ServeProcess
    load: Load
    seconds: float
    kill_every_s: float

    def __post_init__(self) -> None:
        self.samples: list[Sample] = []
        self.kills: list[float] = []
        self._began = 0.0

    @property
    def _t(self) -> float:
        return time.monotonic() - self._began

    async def run(self) -> None:
        """Everything until the time is over and every job has ended."""
        await self.server.start()
        self._began = time.monotonic()
        beside = [
            asyncio.create_task(work()) for work in (self._sample, self._kill, self.load.abuse, self.load.count_doubles)
        ]
        jobs = asyncio.create_task(self.load.jobs())
        try:
            while self._t < self.seconds and not jobs.done():
                await asyncio.sleep(1)
                for task in beside:
                    if task.done() and task.exception() is not None:
                        task.result()
            self.load.stopping = True
            try:
                async with asyncio.timeout(_DRAIN_S):
                    await jobs
            except TimeoutError:
                self.load.ledger.faults.append(f"not every job had ended {_DRAIN_S:g} s after the last submission")
            await self._webhooks()
        finally:
            for task in (*beside, jobs):
                task.cancel()
            await asyncio.gather(*beside, jobs, return_exceptions=True)
        if (code := await self.server.stop()) != 0:
            self.load.ledger.faults.append(f"the server ended with exit code {code}")

    async def _webhooks(self) -> None:
        """Wait until the last ones are delivered."""
        until = time.monotonic() + _WEBHOOK_S
        received = self.load.receivers.received
        while time.monotonic() < until and not self.load.ledger.expected_webhooks.keys() <= received.keys():
            await asyncio.sleep(1)
        self.load.check_webhooks()

    async def _sample(self) -> None:
        while True:
            sample = await asyncio.to_thread(self.server.sample, self._t)
            if sample is not None:
                self.samples.append(sample)
            await asyncio.sleep(_SAMPLE_S)

    async def _kill(self) -> None:
        while self._t + self.kill_every_s < self.seconds * 2 / 3:
            await asyncio.sleep(self.kill_every_s)
            self.kills.append(self._t)
            await self.server.kill()
            await self.server.start()


async def soak(minutes: float, folder: Path, models: Sequence[str], together: int) -> bool:
    """Run it, write samples and plot into the folder, print the table; whether it passed."""
    folder.mkdir(parents=True, exist_ok=True)
    server = ServeProcess(folder, tuple(models))
    server.prepare()
    seconds = 60 * minutes
    async with Receivers() as receivers:
        run = Soak(server, Load(server, receivers, together), seconds, max(15.0, min(240.0, seconds / 4)))
        try:
            await run.run()
        finally:
            await server.kill()
    write_samples(run.samples, folder / "samples.csv")
    ledger = run.load.ledger
    faults = [*ledger.faults, *grown(run.samples, seconds)]
    print(table(run.samples, seconds))
    summary = {
        "minutes": minutes,
        "kills": len(run.kills),
        "jobs": len(ledger.jobs),
        "ends": dict(ledger.ends),
        "answers": dict(sorted(ledger.statuses.items())),
        "abuses": dict(ledger.abuses),
        "webhooks": {"jobs": len(ledger.expected_webhooks), "requests": dict(receivers.requests)},
        "faults": faults[:20],
    }
    print(json.dumps(summary, indent=2))
    try:
        plot(run.samples, run.kills, folder / "soak.png")
    except MissingExtra as error:
        print(f"no plot: {error.message}")
    return not faults


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="An hour of everything at once.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--model", nargs="+", default=list(MODELS))
    parser.add_argument("--together", type=int, default=6, help="jobs open at once")
    options = parser.parse_args()
    if not asyncio.run(soak(options.minutes, options.out, options.model, options.together)):
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
