"""The command's entry: every subcommand, and how errors leave it.

Nothing heavy is imported here or at the top of a subcommand's module: `stillmotion --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cli.batch import batch
from cli.check import check
from cli.curate import curate
from cli.data import data
from cli.errors import Commands
from cli.evaluate import evaluate
from cli.export import export
from cli.generate import generate
from cli.keys import keys
from cli.models import models
from cli.replay import replay
from cli.serve import serve
from cli.train import train
from cli.triton import triton


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"stillmotion {version('stillmotion-server')}")
        raise typer.Exit


app = typer.Typer(
    name="stillmotion",
    help="Turns stills into short videos.",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich takes longer to import than all the rest
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def _stillmotion(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """Turns stills into short videos."""


app.command()(generate)
app.command()(serve)
app.add_typer(models, name="models")
app.command()(check)
app.command()(replay)
app.add_typer(keys, name="keys")
app.add_typer(data, name="data")
app.add_typer(curate, name="curate")
app.command()(train)
app.command(name="eval")(evaluate)
app.command()(export)
app.add_typer(triton, name="triton")
app.command()(batch)
