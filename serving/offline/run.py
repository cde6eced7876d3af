"""Offline rendering: a manifest through Ray Data to videos, a result table and a page to look through.

`render` is the piece for programs: a Ray Dataset of rows becomes a Ray Dataset of results. `run` is what
`stillmotion batch` does: read, render, tell the progress, write the tables.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from model.catalog import ModelEntry, zoo
from model.errors import GenerationFailed, InvalidRequest, StorageFull
from serving.engine.settings import EngineSettings, usable_cores
from serving.offline.cluster import cluster, load_ray
from serving.offline.manifest import NameSet, Portion, RenderList, open_render_list
from serving.offline.output import FAILURES, RECORDS, Output
from serving.offline.result_log import Result, ResultLog
from serving.offline.rows import RowContext, WorkerPlan, plan_workers
from serving.offline.worker import WorkerConfig

if TYPE_CHECKING:
    from ray.data import Dataset

    from serving.offline.worker import Worker


ProgressCallback = Callable[[str, int, int], None]
"""Called with progress: what, how many rows are done, of how many."""

IN_FLIGHT: Final = 8
_AHEAD: Final = 256
"""Rows read ahead of those that have ended, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is to be rendered, and how.

    Args:
        manifest: a path or fsspec URL: JSON lines, CSV, Parquet, or a folder of pictures.
        out: a folder or fsspec URL; complete rows in it are not done again.
        entries: the checkpoints that rows may name; the first of a task is the default.
        defaults: fields of every row that does not say otherwise.
        settings: of each engine.
        workers: engines; None for one a GPU, or one a machine.
        in_flight: rows in work at once in each engine.
        retries: how often a row that failed is tried again.
        ray_address: of a cluster; None for Ray on this machine.
    """

    manifest: str
    out: str
    entries: tuple[ModelEntry, ...]
    portion: Portion = field(default_factory=Portion)
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    settings: EngineSettings = field(default_factory=EngineSettings)
    workers: int | None = None
    in_flight: int = IN_FLIGHT
    retries: int = 2
    ray_address: str | None = None

    def __post_init__(self) -> None:
        """Check. Raises InvalidRequest."""
        for name, least in (("in_flight", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise InvalidRequest(f"{name} must be at least {least}, not {getattr(self, name)}", param=name)

    def reading(self, manifest: RenderList) -> RowContext:
        """What its rows are read against."""
        return RowContext(self.entries, self.defaults, manifest.base)


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Args:
        rows: those that were meant.
        completed: of them, complete now, in this run or one before.
        failed: of them, recorded as failed.
        written: the tables and pages, relative to the output folder.
    """

    rows: int
    completed: int
    failed: int
    written: tuple[str, ...]


def render(
    dataset: Dataset,
    out: str,
    *,
    models: Sequence[ModelEntry] | None = None,
    defaults: Mapping[str, Any] | None = None,
    settings: EngineSettings | None = None,
    workers: int | None = None,
    in_flight: int = IN_FLIGHT,
    retries: int = 2,
) -> Dataset:
    """Render every row of a Ray Dataset; lazily, as Ray Data is.

    Args:
        dataset: one row a request: columns are the API's fields, and `id` and `task`; a picture is bytes, a path, or
            a URL. Rows are read as forms are: an empty cell counts as absent.
        out: a folder or fsspec URL that every machine of the cluster sees.
        models: the checkpoints that rows may name; those shipped if left out.
        defaults: fields of every row that does not say otherwise.
        settings: of each engine.
        workers: engines; None for one a GPU, or one a machine.
        in_flight: rows in work at once in each engine.
        retries: how often a row that failed is tried again.

    Returns:
        One row a result (serving.offline.result_log.Result); one that failed too. Rows that are complete in `out`
        come from their records.

    Raises:
        MissingExtra: ray is not installed.
        InvalidRequest: workers that the cluster has no place for.
    """
    ray = load_ray()
    if not ray.is_initialized():
        ray.init()
    batch = Batch(
        manifest="",
        out=out,
        entries=tuple(models if models is not None else zoo()),
        defaults=defaults or {},
        settings=settings or EngineSettings(),
        workers=workers,
        in_flight=in_flight,
        retries=retries,
    )
    from serving.offline.worker import Worker

    return _rendered(dataset, batch, RowContext(batch.entries, batch.defaults), _plan_workers(ray, batch), Worker)


def run(batch: Batch, report: ProgressCallback) -> Summary:
    """Render a manifest to its end.

    Args:
        report: called for every row that has ended.

    Raises:
        MissingExtra: ray, or what a URL needs, is not installed.
        DataError: the manifest as a whole cannot be read.
        InvalidRequest: workers that there is no place for.
        GenerationFailed: the cluster does not answer, or rows were lost; run it again.
        StorageFull: no room is left in the output folder.
    """
    load_ray()
    manifest = open_render_list(batch.manifest)
    output = Output(batch.out)
    output.sweep()
    next(manifest.rows(Portion(limit=1)), None)  # a file that cannot be read is reported before Ray starts
    total = batch.portion.count(manifest.count())
    with ResultLog() as log:
        try:
            with cluster(batch.ray_address) as ray, _quiet(ray):
                report("starting the engines", 0, 0)
                _consume(ray, batch, manifest, total, log, output, report)
        finally:
            if len(log) or not total:  # a run that came to nothing leaves the tables of the one before
                written = write_all(log, output, batch.portion)
        lost = total - len(log)
        if lost:
            raise GenerationFailed(f"{lost} rows came to no end; run the same command again", code="rows_lost")
        return Summary(total, log.counts["completed"], log.counts["failed"], written)


def _consume(
    ray: Any, batch: Batch, manifest: RenderList, total: int, log: ResultLog, output: Output, report: ProgressCallback
) -> None:
    """Run the dataset; note each result as it comes."""
    from serving.offline.datasource import Feed, Gate, read_manifest
    from serving.offline.worker import PacketWorker

    plan = _plan_workers(ray, batch)
    gate = ray.remote(num_cpus=0, max_restarts=-1)(Gate).remote()
    ahead = max(_AHEAD, 4 * batch.in_flight * plan.workers)
    done = ray.put(NameSet(output.names(RECORDS)))
    feed = Feed(manifest, batch.portion, batch.reading(manifest), done, gate, ahead)
    results = _rendered(read_manifest(feed), batch, feed.reading, plan, PacketWorker)
    failed_before = set(output.names(FAILURES))
    for result in _each(results):
        if result.error_code == StorageFull.code:
            raise StorageFull(result.error_message)
        if result.status == "completed" and result.id in failed_before:
            output.remove(f"{FAILURES}/{result.id}.json")
        log.add(result)
        gate.tell.remote(len(log))
        report(_progress_text(log), len(log), total)


def _progress_text(log: ResultLog) -> str:
    failed = log.counts["failed"]
    return f"rows ({failed} failed)" if failed else "rows"


def _each(results: Dataset) -> Iterator[Result]:
    from serving.offline.tables import unpacked

    for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from unpacked(table)


def _rendered(dataset: Dataset, batch: Batch, reading: RowContext, plan: WorkerPlan, worker: type[Worker]) -> Dataset:
    from ray.data import ActorPoolStrategy

    settings = replace(
        batch.settings,
        threads=plan.threads,
        max_rows=batch.in_flight,
        mux_threads=max(batch.settings.mux_threads, 2),
        checkpoint_every_s=None,  # a row that is lost begins anew
    )
    work = WorkerConfig(batch.out, reading, settings, batch.in_flight, batch.retries)
    # Twice as many calls as rows in work: the pictures of those that come next are fetched meanwhile.
    calls = 2 * batch.in_flight
    return dataset.map_batches(
        worker,
        fn_constructor_args=(work,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            size=plan.workers,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls,
            enable_true_multi_threading=True,
        ),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus,
    )


def _plan_workers(ray: Any, batch: Batch) -> WorkerPlan:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    settings = batch.settings
    return plan_workers(
        nodes,
        cores=usable_cores(),
        device=settings.device,
        workers=batch.workers,
        threads=settings.threads,
        deterministic=settings.deterministic,
    )


@contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Ray Data's own bars and lines off, and a block of every row: retries and progress go by packets.

    Without a size to cut blocks by, Ray Data holds them back until all rows are read.
    """
    context = ray.data.DataContext.get_current()
    changed = {
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        "target_max_block_size": 1,
        "target_min_block_size": 0,
    }
    before = {name: getattr(context, name) for name in changed}
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for name, value in changed.items():
        setattr(context, name, value)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_all(log: ResultLog, output: Output, portion: Portion) -> tuple[str, ...]:
    """The result tables and the pages to look through, of all that is known now."""
    from serving.offline.contact_sheet import write_pages
    from serving.offline.tables import write_tables

    mark = "" if portion.shards == 1 else f"-{portion.shard}-of-{portion.shards}"
    names = (f"results{mark}.jsonl", f"results{mark}.parquet")
    with TemporaryDirectory(prefix="stillmotion-batch-") as scratch:
        jsonl, parquet = (Path(scratch) / name for name in names)
        write_tables(log.pages(), jsonl, parquet)
        for path in (jsonl, parquet):
            output.put_file(path.name, path)
    return (*names, *write_pages(log, output, mark))
