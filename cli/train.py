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
    plan: Annotated[bool, typer.Option("--plan", help="Print what the run needs, memory included, and stop.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="With --plan: how many processes share the run.")] = 1,
    list_: Annotated[bool, typer.Option("--list", help="List the recipes and stop.")] = False,
) -> None:
    """Train a checkpoint by a recipe."""
    from training.recipes import PUBLISHED, RECIPES

    known = {**RECIPES, **PUBLISHED}
    if list_:
        for name, function in known.items():
            typer.echo(f"{name}  {(function.__doc__ or '').strip().partition(chr(10))[0]}")
        return
    overrides = set_ or []
    for override in overrides:
        if not override.partition("=")[0] or "=" not in override:
            raise typer.BadParameter(f"{override!r} is not KEY=VALUE", param_hint="--set")
    if plan:
        for line in _plan(recipe, overrides, processes):
            typer.echo(line)
        return
    if recipe not in known:
        problem = "name a recipe" if recipe is None else f"no recipe is called {recipe!r}"
        raise typer.BadParameter(f"{problem}; there are: {', '.join(known)}", param_hint="RECIPE")
    if data is None or out is None:
        raise typer.BadParameter(
            "--data and --out are needed: the dataset, and the folder of runs", param_hint="RECIPE"
        )

    from cli.progress import reporting
    from training.train import train as run_recipe

    with reporting() as report:
        folder = run_recipe(recipe, data, out, overrides, resume, report)
    typer.echo(str(folder))


def _plan(recipe: str | None, overrides: list[str], processes: int) -> list[str]:
    """What a denoiser's run needs; the published recipes can be planned too."""
    from training.config import DenoiserConfig, LoraConfig
    from training.memory_plan import describe_arithmetic, plan
    from training.overrides import with_overrides
    from training.recipes import PUBLISHED, RECIPES

    known = {**RECIPES, **PUBLISHED}
    if recipe not in known:
        raise typer.BadParameter(f"name a recipe to plan; there are: {', '.join(known)}", param_hint="RECIPE")
    config = with_overrides(known[recipe](), overrides)
    if not isinstance(config, DenoiserConfig | LoraConfig):
        raise typer.BadParameter(f"{recipe} trains no denoiser; only denoisers are planned", param_hint="RECIPE")
    return [*plan(config, processes).lines(), describe_arithmetic(config)]
