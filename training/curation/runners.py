"""How the stages are run: on Ray Data, streaming, on this machine or a cluster; or one after another in this process.

Both run the same stages and leave the same dataset. On a cluster the dataset folder and the sources must lie where
every machine sees them under the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from model.errors import MissingExtra
from training.config import ProgressCallback
from training.curation.plugins import CAPTIONERS
from training.curation.records import Resources
from training.curation.stages import Caption, CutClips, FindCuts, Probe, Row, Score, Tools, make_scorer


@dataclass(frozen=True, slots=True)
class CurationPlan:
    """What is to be run.

    Args:
        score_groups: scorers that share a worker, since they need the same; one pass over the clips each.
        captioners: in order.
    """

    dataset: str
    sources: tuple[str, ...]
    probe: Probe
    find_cuts: FindCuts
    cut_clips: CutClips
    score_groups: tuple[tuple[Resources, tuple[str, ...]], ...]
    captioners: tuple[str, ...]
    tools: Tools


class Runner(Protocol):
    """Runs a plan to its end."""

    def run(self, plan: CurationPlan, report: ProgressCallback) -> None:
        """Do what is not done yet."""
        ...


def grouped(names: Sequence[str], tools: Tools) -> tuple[tuple[Resources, tuple[str, ...]], ...]:
    """Scorers by what they need."""
    groups: dict[Resources, list[str]] = {}
    for name in names:
        groups.setdefault(make_scorer(name, tools).resources, []).append(name)
    return tuple((need, tuple(members)) for need, members in groups.items())


class LocalRunner:
    """Everything in this process, one clip after another."""

    def run(self, plan: CurationPlan, report: ProgressCallback) -> None:
        """Do what is not done yet."""
        rows: list[Row] = []
        for done, path in enumerate(plan.sources):
            for source in plan.probe({"path": path}):
                for cut in plan.find_cuts(source):
                    rows += plan.cut_clips(cut)
            report("cutting sources into clips", done + 1, len(plan.sources))
        for _, names in plan.score_groups:
            score = Score(plan.dataset, names, plan.tools)
            for done, row in enumerate(rows):
                score(row)
                report(f"scoring clips: {', '.join(names)}", done + 1, len(rows))
        for k in range(len(plan.captioners)):
            caption = Caption(plan.dataset, plan.captioners[: k + 1], plan.tools)
            size = max(1, caption.captioner.resources.batch)
            for done, batch in enumerate(_batches(rows, size)):
                caption.batch(batch)
                report(f"captioning clips: {plan.captioners[k]}", min((done + 1) * size, len(rows)), len(rows))


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


class RayRunner:
    """Ray Data: many sources and clips at once, streamed from stage to stage.

    Each pass has one stage whose workers live on (they hold weights); the stages before it are tasks. So a machine with
    two cores is enough, and no worker waits for one that waits for it.

    Args:
        address: of a cluster; None starts Ray on this machine and stops it afterwards.
        cpus: how many this machine's Ray may use; None for all.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None) -> None:
        self.address, self.cpus = address, cpus

    def run(self, plan: CurationPlan, report: ProgressCallback) -> None:
        """Do what is not done yet.

        Raises:
            MissingExtra: Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise MissingExtra("curating on Ray", "curate") from None
        options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "configure_logging": False}
        if self.address is None:
            options |= {"num_cpus": self.cpus, "include_dashboard": False, "object_store_memory": 200_000_000}
        ray.init(**options)
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            self._passes(ray, plan, report)
        finally:
            ray.shutdown()

    def _passes(self, ray: Any, plan: CurationPlan, report: ProgressCallback) -> None:
        cpus = max(1.0, float(ray.cluster_resources().get("CPU", 1)))
        first = ray.data.from_items([{"path": path} for path in plan.sources], override_num_blocks=len(plan.sources))
        for stage in (plan.probe, plan.find_cuts, plan.cut_clips):
            # Tasks leave a core to the workers that live on, where there is more than one.
            first = first.flat_map(stage.__call__, num_cpus=min(stage.resources.cpus, max(0.5, cpus - 1)))
        clips: Any = first
        for k, (need, names) in enumerate(plan.score_groups):
            kwargs = {"dataset": plan.dataset, "names": names, "tools": plan.tools}
            scored = clips.flat_map(Score, fn_constructor_kwargs=kwargs, **_workers(need, cpus))
            rows = _drained(scored, f"scoring clips: {', '.join(names)}", report)
            if not rows:
                return
            clips = ray.data.from_items(rows) if k == 0 else clips
        for k, name in enumerate(plan.captioners):
            need = CAPTIONERS[name](plan.tools.get(name, {})).resources
            kwargs = {"dataset": plan.dataset, "names": plan.captioners[: k + 1], "tools": plan.tools}
            size = max(1, need.batch)
            captioned = clips.map_batches(
                Caption, fn_constructor_kwargs=kwargs, batch_size=size, **_workers(need, cpus)
            )
            _drained(captioned, f"captioning clips: {name}", report)


def _workers(need: Resources, cpus: float) -> dict[str, Any]:
    """How many workers a pass may have: all cores but what its tasks need to go on."""
    each = min(need.cpus, max(0.5, cpus / 2))
    most = max(1, int(cpus / max(each, 0.1)))
    options: dict[str, Any] = {"num_cpus": each, "concurrency": (1, most)}
    return {**options, "num_gpus": need.gpus} if need.gpus else options


def _drained(dataset: Any, what: str, report: ProgressCallback) -> list[Row]:
    rows: list[Row] = []
    for row in dataset.iter_rows():
        rows.append(row)
        report(f"{what}, clip {len(rows)}", len(rows), len(rows) + 1)
    return rows


RUNNERS: dict[str, Callable[[], Runner]] = {"local": LocalRunner, "ray": RayRunner}
"""By the name that `--runner` takes."""
