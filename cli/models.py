"""`stillmotion models`: what can be served without a network, and `models pull`: a hub's checkpoint ahead of time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, engine_options

if TYPE_CHECKING:
    from model.catalog import ModelEntry

models = typer.Typer(help="List the checkpoints that can be served; fetch one of a model hub.", rich_markup_mode=None)


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the checkpoints that can be served: the shipped ones, those pulled, adapted single files."""
    if context.invoked_subcommand is not None:
        return
    from model.catalog import zoo
    from model.sources.source import available

    local = available()
    named = [(entry.name, entry) for entry in zoo()]
    named += [(source, entry) for source, entry in local if entry is not None]
    unfinished = [source for source, entry in local if entry is None]
    if as_json:
        typer.echo(json.dumps([_as_dict(source, entry) for source, entry in named], indent=2))
        return
    for source in unfinished:
        typer.echo(f"{source} is not complete; `stillmotion models pull {source}` goes on", err=True)
    if not named:
        typer.echo("no checkpoints are shipped here; name a folder or a hub id with --model", err=True)
        return
    from cli.table import table

    rows = [
        (source, entry.task.name, entry.num_frames, f"{entry.width}x{entry.height}", entry.version, entry.path)
        for source, entry in named
    ]
    typer.echo(table(("name", "task", "frames", "size", "version", "path"), rows))


def _as_dict(source: str, entry: ModelEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "source": source,
        "task": entry.task.name,
        "num_frames": list(entry.num_frames),
        "height": entry.height,
        "width": entry.width,
        "version": entry.version,
        "path": str(entry.path),
        "defaults": entry.defaults,
        "loras": [one.pinned for one in entry.loras],
    }


@models.command()
@engine_options("pull")
def pull(
    source: Annotated[str, typer.Argument(metavar="ID", help="ORG/NAME of the hub; @REVISION for a branch or commit.")],
    *,
    engine_options: dict[str, Any],
    as_json: Json = False,
) -> None:
    """Fetch a checkpoint of the hub: only the files that are read, of the variant that suits the dtype."""
    from model.errors import InvalidRequest
    from model.platform import resolve_dtype
    from model.sources.hub import parse_hub_id
    from model.sources.source import of_hub

    hub_id = parse_hub_id(source)
    if hub_id is None:
        raise InvalidRequest(f"{source!r} is no hub id: name it as ORG/NAME, or ORG/NAME@REVISION", param="model")
    entry = of_hub(hub_id, resolve_dtype(engine_options["dtype"], engine_options["device"]))
    if as_json:
        typer.echo(json.dumps(_as_dict(source, entry), indent=2))
    else:
        typer.echo(f"{source}  version {entry.version}, {entry.path}\nserve it: stillmotion serve --model {source}")
