"""`stillmotion eval`: a checkpoint's figures, each beside its baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.options import Json


def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped checkpoint, a folder, a hub id or a file.")],
    data: Annotated[
        Path | None, typer.Option(help="A prepared dataset; its held-out part is used.", exists=True, file_okay=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Inputs at most, for a quick look. [all]")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps. [the checkpoint's own]")] = None,
    device: Annotated[str, typer.Option(help="Where the checkpoint runs.")] = "cpu",
    figures: Annotated[
        str, typer.Option(help="Of image-to-video: only these figures, by comma: still_itself,motion. [all]")
    ] = "",
    i3d: Annotated[
        Path | None, typer.Option(help="I3D as a TorchScript file: measures FVD too.", exists=True, dir_okay=False)
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a page with the clips side by side into this folder.", file_okay=False)
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Write the figures and the model card into MODEL's folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a checkpoint on held-out shots and photographs."""
    from cli.progress import reporting
    from model.errors import InvalidRequest
    from model.sources.source import find
    from training.evaluate import EvalSettings
    from training.evaluate import evaluate as measure

    entry = find(model)
    names = tuple(name.strip() for name in figures.split(",") if name.strip())
    if card and names:
        raise InvalidRequest("a card has every figure: leave --figures or --card out", param="figures")
    settings = EvalSettings(steps=steps, device=device, figures=names, i3d=i3d, page=page)
    with reporting() as report:
        result = measure(entry, data, limit, report, settings)
    if card:
        from training.model_card import write_card

        write_card(entry, result)
    typer.echo(json.dumps(result, indent=2) if as_json else figures_table(result["figures"]))


def figures_table(figures: dict[str, Any]) -> str:
    """A row a figure. A figure that is a dict (its value, its baselines) has its entries as columns."""
    from cli.table import table

    rows = {name: figure if isinstance(figure, dict) else {"value": figure} for name, figure in figures.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [(name.replace("_", " "), *(_flat(row.get(column)) for column in columns)) for name, row in rows.items()]
    return table(("figure", *(column.replace("_", " ") for column in columns)), lines)


def _flat(value: Any) -> Any:
    """A nested dict on one line."""
    if isinstance(value, dict):
        return tuple(f"{key} {part:.4g}" if isinstance(part, float) else f"{key} {part}" for key, part in value.items())
    return value
