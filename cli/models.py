"""`stillmotion models`: what can be served."""

from __future__ import annotations

import json

import typer

from cli.options import Json


def models(as_json: Json = False) -> None:
    """List the checkpoints that can be served: task, size, where they lie."""
    from model.catalog import zoo

    entries = zoo()
    if as_json:
        listed = [
            {
                "name": entry.name,
                "task": entry.task.name,
                "num_frames": list(entry.num_frames),
                "height": entry.height,
                "width": entry.width,
                "version": entry.version,
                "path": str(entry.path),
                "defaults": entry.defaults,
                "loras": [one.pinned for one in entry.loras],
            }
            for entry in entries
        ]
        typer.echo(json.dumps(listed, indent=2))
        return
    if not entries:
        typer.echo("no checkpoints are shipped here; any diffusers folder can be named by --model DIR", err=True)
        return
    from cli.table import table

    rows = [
        (entry.name, entry.task.name, entry.num_frames, f"{entry.width}x{entry.height}", entry.version, entry.path)
        for entry in entries
    ]
    typer.echo(table(("name", "task", "frames", "size", "version", "path"), rows))
