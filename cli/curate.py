"""`stillmotion curate`: raw footage becomes a dataset; `curate filter` re-selects without touching video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.calibrate import calibrate
from cli.options import Json


class _Curate(TyperGroup):
    """A group whose first argument may be a source: `curate film.mp4 --out D` is `curate run film.mp4 --out D`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "-h", "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


curate = typer.Typer(
    cls=_Curate, help="Turn raw footage into a dataset of scored clips.", no_args_is_help=True, rich_markup_mode=None
)


curate.add_typer(calibrate, name="calibrate")


@curate.callback()
def _curate() -> None:
    """Turn raw footage into a dataset: `curate SOURCE... --out DATASET` (the same as `curate run`)."""


@curate.command()
def run(
    source: Annotated[list[Path], typer.Argument(help="Videos, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="The dataset's folder; run again, it goes on where it stopped.")],
    runner: Annotated[str, typer.Option(help="ray (this machine or a cluster) or local (one process).")] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster, with --runner ray. [Ray is started on this machine]")
    ] = None,
    cuts: Annotated[str, typer.Option(help="Cut detector: cascade or transnet.")] = "cascade",
    score: Annotated[
        list[str] | None, typer.Option(help="Run this scorer only; several times for several. none: as few as can be.")
    ] = None,
    caption: Annotated[list[str] | None, typer.Option(help="Likewise for captioners.")] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option("--tool", metavar="NAME.KEY=VALUE", help="A setting of a tool: clip.weights=DIR."),
    ] = None,
    min_length: Annotated[float, typer.Option(help="Shortest clip, in seconds.")] = 2.0,
    max_length: Annotated[float, typer.Option(help="Longest clip, in seconds.")] = 10.0,
    max_lost: Annotated[
        float | None,
        typer.Option(help="Encode a clip's edges anew where a copy would lose more than so many seconds at an end."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a dataset of videos: cuts, clips, scores, captions, selection, shards, report."""
    from cli.progress import reporting
    from training.curation.clips_plan import ClipRules
    from training.curation.pipeline import Settings
    from training.curation.pipeline import curate as make
    from training.curation.runners import RUNNERS, RayRunner

    if runner not in RUNNERS:
        raise typer.BadParameter(f"{runner!r} is none of {', '.join(RUNNERS)}", param_hint="--runner")
    if ray_address is not None and runner != "ray":
        raise typer.BadParameter("a cluster needs --runner ray", param_hint="--ray-address")
    if not 0 < min_length <= max_length:
        raise typer.BadParameter("clips need 0 < --min-length <= --max-length", param_hint="--min-length")
    settings = Settings(
        cuts=cuts,
        rules=ClipRules(min_length, max_length, max_lost),
        scorers=_names(score),
        captioners=_names(caption),
        tools=_tools(tool or []),
    )
    with reporting() as report:
        chosen = RUNNERS[runner]() if ray_address is None else RayRunner(ray_address)
        outcome = make(source, out, settings, chosen, report)
    answer = {
        "path": str(out),
        **{key: outcome.manifest[key] for key in ("content_sha256", "clips", "kept", "kept_seconds", "splits")},
        "in_clips_s": round(outcome.kept_s, 3),
        "lost_to_snapping_s": round(outcome.snapped_s, 3),
        "in_short_shots_s": round(outcome.short_s, 3),
        "broken": [{"path": path, "error": error} for path, error in outcome.broken],
        "damaged": [{"path": path, "warning": warning} for path, warning in outcome.damaged],
    }
    typer.echo(json.dumps(answer) if as_json else _lines(answer))


@curate.command(name="filter")
def filter_(
    dataset: Annotated[Path, typer.Argument(help="A curated dataset.", exists=True, file_okay=False)],
    as_json: Json = False,
) -> None:
    """Select again by the dataset's thresholds.toml; no video is read."""
    from cli.progress import reporting
    from training.curation.pipeline import reselect

    with reporting() as report:
        manifest = reselect(dataset, report)
    answer = {
        "path": str(dataset),
        **{key: manifest[key] for key in ("content_sha256", "clips", "kept", "kept_seconds")},
    }
    typer.echo(json.dumps(answer) if as_json else f"{dataset}: {answer['kept']} of {answer['clips']} clips kept")


def _names(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(name for name in values if name != "none")


def _tools(values: list[str]) -> dict[str, dict[str, str]]:
    tools: dict[str, dict[str, str]] = {}
    for setting in values:
        key, equals, value = setting.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot and name and option):
            raise typer.BadParameter(f"{setting!r} is not NAME.KEY=VALUE", param_hint="--tool")
        tools.setdefault(name, {})[option] = value
    return tools


def _lines(answer: dict[str, Any]) -> str:
    lines = [
        f"{answer['path']}: {answer['kept']} of {answer['clips']} clips kept ({answer['kept_seconds']:.1f} s)",
        f"in clips {answer['in_clips_s']:.1f} s, lost to snapping {answer['lost_to_snapping_s']:.1f} s, "
        f"in shots too short {answer['in_short_shots_s']:.1f} s",
    ]
    lines += [f"no clips from {one['path']}: {one['error']}" for one in answer["broken"]]
    lines += [f"fewer clips or scores from {one['path']}: {one['warning']}" for one in answer["damaged"]]
    return "\n".join([*lines, f"report: {answer['path']}/report.html"])
