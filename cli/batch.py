"""`stillmotion batch`: a manifest of requests, or a folder of stills, rendered without a server."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, engine_options

if TYPE_CHECKING:
    from serving.offline import Batch, Summary
    from serving.offline.survey import Fault, Survey

SOME_FAILED = 1


@engine_options("batch")
def batch(
    manifest: Annotated[
        str, typer.Argument(help="JSONL, CSV or Parquet, one request a row; or a folder of stills. A path or a URL.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URL for videos and results; what is complete there stays.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="A shipped checkpoint, a folder, a hub id or a file; may be repeated. [all shipped]"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A field of every row that does not say otherwise."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many rows.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Every N-th row, beginning with the I-th.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every row and estimate the time; render nothing.")
    ] = False,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster. [Ray is started on this machine]")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Engines. [one a GPU, or one a machine]")] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Rows in work at once in each engine.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="How often a row that failed is tried again.")] = 2,
    *,
    engine_options: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Render a manifest of requests; run again, it does what is missing. Exit code 1: rows failed."""
    from model.catalog import zoo
    from model.platform import resolve_dtype
    from model.sources.source import find_all
    from serving.engine.settings import EngineSettings
    from serving.offline import Batch
    from serving.offline.manifest import Portion

    precision = resolve_dtype(engine_options["dtype"], engine_options["device"])
    job = Batch(
        manifest=_absolute(manifest),
        out=_absolute(out),
        entries=tuple(find_all(model, precision)) if model else tuple(zoo()),
        portion=Portion.of(shard, limit),
        defaults=dict(_setting(text) for text in set_ or ()),
        settings=EngineSettings(**engine_options),
        workers=workers,
        in_flight=in_flight,
        retries=retries,
        ray_address=ray_address,
    )
    failed = _survey(job, as_json) if dry_run else _run(job, as_json)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _run(job: Batch, as_json: bool) -> int:
    from cli.progress import reporting
    from serving.offline import run

    # A supervisor's stop ends it as Ctrl-C does: Ray is shut down, and the tables tell what is there.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with reporting() as report:
        summary = run(job, report)
    typer.echo(_summary(job, summary, as_json))
    return summary.failed


def _summary(job: Batch, summary: Summary, as_json: bool) -> str:
    answer = {
        "out": job.out,
        "rows": summary.rows,
        "completed": summary.completed,
        "failed": summary.failed,
        "written": list(summary.written),
    }
    if as_json:
        return json.dumps(answer, indent=2)
    text = f"{job.out}  {summary.completed} of {summary.rows} rows are videos"
    if summary.failed:
        text += f", {summary.failed} failed: see {job.out}/{summary.written[0]}, or run again to try them again"
    return f"{text}\n{job.out}/{summary.written[2]}  to look through"


def _survey(job: Batch, as_json: bool) -> int:
    from cli.progress import reporting
    from serving.offline.survey import survey

    faults: list[dict[str, Any]] = []

    def tell(fault: Fault) -> None:
        if as_json:
            faults.append({"row": fault.row, "column": fault.column, "code": fault.code, "message": fault.message})
        else:
            where = f"row {fault.row}" + (f", column {fault.column}" if fault.column else "")
            typer.echo(f"{where}: {fault.message}")

    with reporting() as report:
        result = survey(job, tell, report)
    typer.echo(_survey_summary(result, faults, as_json))
    return result.faulty


def _survey_summary(result: Survey, faults: list[dict[str, Any]], as_json: bool) -> str:
    from cli.progress import seconds

    to_do = result.rows - result.complete - result.faulty
    if as_json:
        answer = {
            "rows": result.rows,
            "complete": result.complete,
            "faulty": result.faulty,
            "to_render": to_do,
            "estimate_s": result.estimate_s,
            "faults": faults,
        }
        return json.dumps(answer, indent=2)
    text = f"{result.rows} rows: {result.complete} complete, {result.faulty} with faults, {to_do} to render"
    if result.estimate_s is None:
        return f"{text}; no profile says how long that takes"
    return f"{text}, in about {seconds(result.estimate_s)} on one engine like this machine's"


def _setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE; a value that is JSON is taken as such."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text} is not NAME=VALUE", param_hint="--set")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _absolute(location: str) -> str:
    """A local path from the root, since workers may have another working folder."""
    return location if "://" in location else str(Path(location).absolute())
