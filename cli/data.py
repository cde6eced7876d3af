"""`stillmotion data ...`: datasets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json

data = typer.Typer(help="Fetch and prepare datasets.", no_args_is_help=True, rich_markup_mode=None)


@data.callback()
def _data() -> None:
    """Fetch and prepare datasets."""


@data.command()
def starter(
    out: Annotated[Path, typer.Option(help="Folder to prepare it in; run again, it goes on where it stopped.")],
    as_json: Json = False,
) -> None:
    """Prepare the starter dataset: an open film cut into shots, and photographs; some held out from training."""
    from cli.progress import reporting
    from training.data.starter import prepare

    with reporting() as report:
        items = prepare(out, report)
    counts = Counter(f"{item.kind} {item.split}" for item in items)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "items": len(items), "counts": dict(sorted(counts.items()))}))
        return
    listed = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    typer.echo(f"{out}: {len(items)} items ({listed})")


@data.command()
def photographs(
    out: Annotated[Path, typer.Option(help="Folder to prepare it in; run again, it goes on where it stopped.")],
    starter: Annotated[
        Path, typer.Option(help="The starter dataset, whose items it has too.", exists=True, file_okay=False)
    ] = Path("data/starter"),
    as_json: Json = False,
) -> None:
    """Prepare some 280 photographs more, beside the starter dataset's items: pictures to move a camera over."""
    from cli.progress import reporting
    from training.data.photographs import prepare

    with reporting() as report:
        items = prepare(starter, out, report)
    counts = Counter(f"{item.kind} {item.split}" for item in items)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "items": len(items), "counts": dict(sorted(counts.items()))}))
        return
    listed = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    typer.echo(f"{out}: {len(items)} items ({listed})")


@data.command()
def film(
    out: Annotated[Path, typer.Option(help="File to write, an mp4 of 1280 x 720 at 24 frames a second.")],
    as_json: Json = False,
) -> None:
    """Fetch the open film that the starter dataset is cut from, whole: something to curate."""
    from training.data.sources import FILM, copy_film

    copy_film(out)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "licence": FILM.licence, "attribution": FILM.attribution}))
        return
    typer.echo(f"{out}: {FILM.attribution} ({FILM.licence})")


@data.command("multi-view")
def multi_view(
    out: Annotated[Path, typer.Option(help="Folder to render into; run again, it goes on where it stopped.")],
    objects: Annotated[int, typer.Option(min=1, help="How many objects; every eighth is held out.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the objects' parts, colours and elevations.")] = 0,
    as_json: Json = False,
) -> None:
    """Render orbits around objects, 21 views each, for training multi-view; some objects held out."""
    from cli.progress import reporting
    from training.data.orbits import prepare

    with reporting() as report:
        items = prepare(out, objects, seed, report)
    counts = Counter(item.split for item in items)
    if as_json:
        typer.echo(json.dumps({"path": str(out), "orbits": len(items), "counts": dict(sorted(counts.items()))}))
        return
    listed = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    typer.echo(f"{out}: {len(items)} orbits ({listed})")
