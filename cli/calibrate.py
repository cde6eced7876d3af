"""`stillmotion curate calibrate ...`: thresholds from what people prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

calibrate = typer.Typer(
    help="Choose thresholds by votes: prepare, vote, fit.", no_args_is_help=True, rich_markup_mode=None
)
_Folder = Annotated[Path, typer.Argument(help="The calibration's folder.", exists=True, file_okay=False)]


@calibrate.callback()
def _calibrate() -> None:
    """Choose thresholds by votes on what proxies make that were trained without an axis's worst clips."""


@calibrate.command()
def prepare(
    dataset: Annotated[Path, typer.Argument(help="A curated dataset.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="The calibration's folder; run again, it goes on where it stopped.")],
    networks: Annotated[
        Path, typer.Option(help="Folder of runs with the recipe's frozen networks.", exists=True, file_okay=False)
    ],
    axis: Annotated[list[str], typer.Option(help="A score to calibrate; several times for several.")],
    recipe: Annotated[str, typer.Option(help="What trains the proxies.")] = "mini-image-to-video",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one of the recipe's values.")
    ] = None,
    stills: Annotated[int, typer.Option(min=1, help="Held-out stills to sample from.")] = 64,
) -> None:
    """Train a proxy on each subset (an axis's worst 0, 12.5, 25, 50% left out) and sample from it."""
    from cli.progress import reporting
    from training.curation.calibrate.prepare import Calibration
    from training.curation.calibrate.prepare import prepare as make

    calibration = Calibration(
        dataset=dataset,
        folder=out,
        axes=tuple(dict.fromkeys(axis)),
        recipe=recipe,
        networks=networks,
        stills=stills,
        overrides=tuple(set_ or []),
    )
    with reporting() as report:
        plan = make(calibration, report)
    typer.echo(f"{out}: {len(plan.pairs)} pairs; open the page with: stillmotion curate calibrate vote {out}")


@calibrate.command()
def vote(
    folder: _Folder,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8100,
) -> None:
    """Open the voting page, until interrupted."""
    from training.curation.calibrate.page import VotingServer

    with VotingServer(folder, host, port) as server:
        typer.echo(f"vote at {server.url} (ctrl-c ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo(f"{len(server.book.votes)} votes in {folder}")


@calibrate.command()
def fit(folder: _Folder) -> None:
    """Rate the subsets by the votes and write the thresholds file, with its evidence."""
    from training.curation.calibrate.fit import fit as rate

    typer.echo(rate(folder), nl=False)
