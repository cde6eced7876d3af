"""`stillmotion train`: run one of the recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str | None, typer.Argument(help="Which recipe; --list shows them.")] = None,
    data: Annotated[Path | None, typer.Option(help="A prepared dataset.", exists=True, file_okay=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of runs; this one is OUT/RECIPE.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one of the recipe's values.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes and stop.")] = False,
) -> None:
    """Train a checkpoint by a recipe."""
    from training.recipes import RECIPES

    if list_:
        for name, function in RECIPES.items():
            typer.echo(f"{name}  {(function.__doc__ or '').strip().partition(chr(10))[0]}")
        return
    overrides = set_ or []
    for override in overrides:
        if not override.partition("=")[0] or "=" not in override:
            raise typer.BadParameter(f"{override!r} is not KEY=VALUE", param_hint="--set")
    if recipe not in RECIPES:
        asked = "name a recipe" if recipe is None else f"no recipe is called {recipe!r}"
        raise typer.BadParameter(f"{asked}; there are: {', '.join(RECIPES)}", param_hint="RECIPE")
    if data is None or out is None:
        raise typer.BadParameter(
            "--data and --out are needed: the dataset, and the folder of runs", param_hint="RECIPE"
        )

    from cli.progress import reporting
    from training.cli_entry import run

    with reporting() as report:
        folder = run(recipe, data, out, overrides, resume, report)
    typer.echo(str(folder))
