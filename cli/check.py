"""`stillmotion check`: what a model is, what it lacks, how it would run here, and the command to serve it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, engine_options

if TYPE_CHECKING:
    from model.catalog import ModelEntry
    from serving.engine.report import CardPlan, FolderReport, RunReport

NOT_SERVED = 1


@engine_options("check")
def check(
    model: Annotated[str, typer.Argument(help="A shipped checkpoint, a folder, a hub id or a file.")],
    *,
    engine_options: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Say what a model is and how it would run here, without loading it. Exit code 1: it cannot be served."""
    from model.errors import CheckpointError
    from model.sources.source import find
    from serving.engine.report import card_plans, device_and_dtype, examine, how_it_runs, networks_of
    from serving.engine.settings import EngineSettings

    settings = EngineSettings(**engine_options)
    _, precision = device_and_dtype(settings)
    try:
        entry = find(model, precision)
    except CheckpointError as error:
        folder = Path(model)
        if not (folder / "model_index.json").is_file() or error.code == "wrong_architecture":
            raise
        found = examine(folder, precision)
        _refuse(model, {"model": model}, found, found.problems or (error.message,), as_json)
        raise typer.Exit(NOT_SERVED) from error
    facts = _facts(model, entry)
    if entry.exported:
        _tell(
            facts, [_title(entry), "  an export: its graphs say where it runs", f"serve it: {_command(model)}"], as_json
        )
        return
    found = examine(entry.path, precision, networks_of(entry))
    if found.problems:
        _refuse(_title(entry), facts, found, found.problems, as_json)
        raise typer.Exit(NOT_SERVED)
    runs, plans = how_it_runs(entry, settings), card_plans(entry)
    facts |= {
        "licence": found.licence,
        "components": [asdict(one) for one in found.components],
        "problems": [],
        "here": asdict(runs),
        "plans": [asdict(one) for one in plans],
        "command": _command(model),
    }
    lines = [_title(entry), f"  licence {found.licence or 'not named in its README.md'}; {entry.path}"]
    lines += [*_components(found), "  nothing is missing", *_here(runs), "plans for a GPU, float16:"]
    _tell(facts, [*lines, *map(_card, plans), f"serve it: {_command(model)}"], as_json)


def _refuse(title: str, facts: dict[str, Any], found: FolderReport, problems: tuple[str, ...], as_json: bool) -> None:
    facts |= {"problems": list(problems), "components": [asdict(one) for one in found.components]}
    lines = [f"{title}  cannot be served", *_components(found)]
    _tell(facts, [*lines, *(f"  missing or broken: {problem}" for problem in problems)], as_json)


def _tell(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    typer.echo(json.dumps(facts, indent=2, default=str) if as_json else "\n".join(lines))


def _facts(model: str, entry: ModelEntry) -> dict[str, Any]:
    return {
        "model": model,
        "name": entry.name,
        "version": entry.version,
        "path": str(entry.path),
        "task": entry.task.name,
        "num_frames": list(entry.num_frames),
        "width": entry.width,
        "height": entry.height,
    }


def _title(entry: ModelEntry) -> str:
    frames = " or ".join(map(str, entry.num_frames))
    return f"{entry.name}@{entry.version}  {entry.task.name}, {frames} frames of {entry.width}x{entry.height}"


def _components(found: FolderReport) -> list[str]:
    return [
        f"  {one.name:<14} {one.parameters / 1e6:9.1f} M  {'/'.join(one.dtypes):<8} {one.bytes / 1e6:8.1f} MB  "
        + (f"{one.files} shards" if one.files > 1 else "one file")
        + (f", variant {one.variant}" if one.variant else "")
        for one in found.components
    ]


def _here(runs: RunReport) -> list[str]:
    gib = 2**30
    there = "not here" if runs.memory_bytes is None else f"of {runs.memory_bytes / gib:.1f} GiB"
    lines = [
        f"here on {runs.device} in {runs.dtype}: {runs.needed_bytes / gib:.1f} GiB {there}; "
        f"--denoiser {', '.join(runs.backends)}"
    ]
    if runs.seconds is not None:
        from cli.progress import seconds

        how = "measured" if runs.measured else "estimated"
        lines.append(f"  a video with the defaults: about {seconds(runs.seconds)} ({how})")
    if runs.plan is not None:
        lines.append("  " + _card(runs.plan).strip())
    return lines


def _card(card: CardPlan) -> str:
    if card.plan is None:
        return f"  {card.gib:3.0f} GiB  {card.why}"
    way = card.plan
    notes = [
        f"{way.max_batch_size} slots" if way.max_batch_size > 1 else "one slot",
        f"{way.decode_chunk} frames a chunk",
    ]
    notes += ["in strips"] if way.tiled_decode else []
    notes += ["encoders and autoencoder offloaded"] if way.offload else []
    notes += ["denoiser offloaded by blocks"] if way.group_offload else []
    return f"  {card.gib:3.0f} GiB  {', '.join(notes)}: {way.peak_bytes / 2**30:.1f} GiB"


def _command(model: str) -> str:
    return f"stillmotion serve --model {model}"
