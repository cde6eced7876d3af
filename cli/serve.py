"""`stillmotion serve`: the engine and the gateway in one process."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Denoiser, DenoiserChoice, Deterministic, Device, Dtype, DtypeChoice, Threads
from model.errors import InvalidRequest

if TYPE_CHECKING:
    from model.catalog import ModelEntry
    from serving.engine.protocol import Engine


class EngineChoice(StrEnum):
    """Where sampling happens."""

    inprocess = "inprocess"


class UrlChoice(StrEnum):
    """Which URLs of pictures are fetched (serving.gateway.fetching.UrlChoice)."""

    off = "off"
    https = "https"
    http = "http"


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one. [8000]")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A shipped checkpoint or a diffusers folder; may be repeated. [all shipped]"),
    ] = None,
    engine: Annotated[EngineChoice, typer.Option(help="Where sampling happens.")] = EngineChoice.inprocess,
    database_url: Annotated[
        str | None,
        typer.Option(
            help="The job store: sqlite:///PATH, or postgresql://... that several servers may share. "
            "[SQLite in stillmotion-data/]"
        ),
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Folder for pictures and videos. [in stillmotion-data/]")
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that running jobs have to end once the service is told to stop; the others are "
            "checkpointed and wait for the next start. [30]",
        ),
    ] = None,
    deterministic: Deterministic = False,
    denoiser: Denoiser = DenoiserChoice.auto,
    device: Device = "auto",
    dtype: Dtype = DtypeChoice.float32,
    threads: Threads = None,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Clips in one denoiser call, at most; a guided request is two. [what pays, measured]"),
    ] = None,
    allow_unkeyed: Annotated[
        bool, typer.Option("--allow-unkeyed", help="Serve a public address although no API key was made.")
    ] = False,
    image_urls: Annotated[
        UrlChoice | None, typer.Option(help="Pictures by URL: https only, or http too. [off]")
    ] = None,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="One JSON object a log line, one for each request too.")
    ] = False,
    traces: Annotated[
        bool, typer.Option("--traces", help="Send OpenTelemetry traces; OTEL_* variables say where.")
    ] = False,
) -> None:
    """Serve checkpoints over HTTP."""
    from cli import server
    from model.catalog import find, zoo
    from serving.gateway import Settings, create_app
    from serving.gateway.auth import any_keys, check_exposed
    from serving.observe.logs import configure

    entries = [find(name) for name in model] if model else zoo()
    if not entries:
        raise InvalidRequest("no checkpoint is shipped here; name a diffusers folder with --model DIR", param="model")
    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "database_url": database_url,
        "artifacts": artifacts,
        "grace_s": grace,
        "allow_unkeyed": allow_unkeyed or None,
        "image_urls": image_urls and image_urls.value,
        "log_json": log_json or None,
        "traces": traces or None,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    configure(settings.log_json)
    check_exposed(settings.host, has_keys=any_keys(settings.database_url), allow_unkeyed=settings.allow_unkeyed)
    listener = server.listen(settings.host, settings.port)
    how = {
        "backend": denoiser.value,
        "device": device,
        "dtype": dtype.value,
        "threads": threads,
        "max_batch": max_batch,
        "deterministic": deterministic,
        "checkpoint_every_s": settings.checkpoint_every_s,
    }
    served = _ENGINES[engine](entries, how)
    names = ", ".join(entry.name for entry in entries)

    def on_ready(url: str) -> None:
        typer.echo(f"ready: {url} serves {names}; API docs at {url}/docs")

    app = create_app(served, entries, settings)

    async def drain() -> None:
        await app.state.services.dispatcher.drain(settings.grace_s)

    server.run(app, listener, lambda: served.ready, on_ready, drain)


def _in_process(entries: Sequence[ModelEntry], how: dict[str, Any]) -> Engine:
    from serving.engine.inprocess import InProcessEngine
    from serving.engine.settings import EngineSettings

    return InProcessEngine(entries, EngineSettings(**how))


_ENGINES = {EngineChoice.inprocess: _in_process}
