"""`stillmotion serve`: the engine and the gateway in one process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import engine_options, gateway_settings
from model.errors import InvalidRequest, MissingExtra

if TYPE_CHECKING:
    from model.catalog import ModelEntry
    from serving.engine.protocol import Engine
    from serving.engine.settings import EngineSettings


class EngineChoice(StrEnum):
    """Where sampling happens."""

    inprocess = "inprocess"
    triton = "triton"


class UrlChoice(StrEnum):
    """Which URLs of pictures are fetched (serving.gateway.images.UrlChoice)."""

    off = "off"
    https = "https"
    http = "http"


@engine_options("serve")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one. [8000]")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SOURCE",
            help="A shipped checkpoint, a folder, a hub id or a file; a model of the Triton servers; may be repeated. "
            "[all]",
        ),
    ] = None,
    engine: Annotated[EngineChoice, typer.Option(help="Where sampling happens.")] = EngineChoice.inprocess,
    triton_url: Annotated[
        list[str] | None,
        typer.Option(help="With --engine triton: HOST:PORT of a server's gRPC service; may be repeated."),
    ] = None,
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
            help="Seconds that running jobs have to end once the service gets SIGTERM; the others are "
            "checkpointed and wait for the next start. [30]",
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="cuda:0,cuda:1|all", help="Several GPUs: a process each, and every job where least work is left."
        ),
    ] = None,
    *,
    engine_options: dict[str, Any],
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE|FOLDER",
            help="LoRAs to offer, besides those in a checkpoint's folder loras/; may be repeated.",
        ),
    ] = None,
    upscaler: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="An ONNX super-resolution network to offer; may be repeated."),
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
    from serving.engine.settings import EngineSettings
    from serving.engine.stats import is_broken
    from serving.gateway import create_app
    from serving.gateway.auth import any_keys, check_exposed
    from serving.jobs.artifacts import Artifacts
    from serving.observe.logs import START, configure

    fields: dict[str, Any] = {
        "host": host,
        "port": port,
        "database_url": database_url,
        "artifacts": artifacts,
        "grace_s": grace,
        "allow_unkeyed": allow_unkeyed or None,
        "image_urls": image_urls and image_urls.value,
        "upscalers": ",".join(upscaler) if upscaler else None,
        "log_json": log_json or None,
        "traces": traces or None,
    }
    settings = gateway_settings(fields)
    configure(settings.log_json)
    if not triton_url and find_spec("torch") is None:  # before anything is made on the disk
        raise MissingExtra("serving models in this process", "engine")
    Artifacts.open(settings.artifacts)  # what is wrong with the folder is said before anything is loaded
    check_exposed(settings.host, has_keys=any_keys(settings.database_url), allow_unkeyed=settings.allow_unkeyed)
    engine_settings = EngineSettings(**engine_options, checkpoint_every_s=settings.checkpoint_every_s)
    if (engine is EngineChoice.triton) != bool(triton_url):
        raise InvalidRequest("--engine triton and --triton-url HOST:PORT go together", param="triton_url")
    if triton_url and lora:
        raise InvalidRequest(
            "LoRAs are the Triton servers': put the files into the folder loras of the model's checkpoint", param="lora"
        )
    if devices and engine_settings.cfg_parallel:
        raise InvalidRequest("--cfg-parallel is for one engine; leave it or --devices out", param="cfg_parallel")
    if devices and (triton_url or engine_settings.device != "auto"):
        raise InvalidRequest(
            "--devices takes the place of --device, in this process; with Triton, instance groups of the model's "
            "config.pbtxt say which GPUs it takes",
            param="devices",
        )
    served, entries = (
        _triton(triton_url, model or [], engine_settings)
        if triton_url
        else _in_process(model or [], lora or [], engine_settings, devices)
    )
    listener = server.listen(settings.host, settings.port)
    names = ", ".join(entry.name for entry in entries)
    logging.getLogger(START).info("opening %s; jobs wait until %s can be served", server.url_of(listener), names)

    def on_ready(url: str) -> None:
        typer.echo(f"ready: {url} serves {names}; playground at {url}/, API docs at {url}/docs")

    app = create_app(served, entries, settings)

    async def drain() -> None:
        await app.state.services.dispatcher.drain(settings.grace_s)

    def failure() -> str | None:
        services = getattr(app.state, "services", None)  # there once the app has started
        return None if services is None else services.warmup.failure

    limits = settings.connection_limits
    server.run(app, listener, lambda: served.ready, on_ready, drain, lambda: is_broken(served), limits, failure)


def _in_process(
    names: Sequence[str], loras: Sequence[str], settings: EngineSettings, devices: str | None = None
) -> tuple[Engine, Sequence[ModelEntry]]:
    """The engine in this process; with `devices`, one in a process of its own on each of them."""
    from model.backends.registry import LORA_BACKENDS, with_usable_loras
    from model.catalog import attach_loras, zoo
    from model.platform import resolve_devices, resolve_dtype
    from model.prefault import prefault_weights
    from model.sources.source import find_all

    on_devices = resolve_devices(devices) if devices else []
    precision = resolve_dtype(settings.dtype, on_devices[0] if on_devices else settings.device)
    entries = find_all(names, precision) if names else zoo()
    if precision == "float32" and not on_devices:
        for entry in entries:
            prefault_weights(entry, settings.device)  # while what follows is imported
    from serving.engine.data_parallel import engines_on
    from serving.engine.inprocess import InProcessEngine

    if not entries:
        raise InvalidRequest("no checkpoint is shipped here; name a diffusers folder with --model DIR", param="model")
    if loras and settings.backend not in ("auto", *LORA_BACKENDS):
        raise InvalidRequest(
            f"--denoiser {settings.backend} cannot apply a LoRA; choose torch, or leave --lora out",
            code="lora_unsupported",
            param="lora",
        )
    if loras and settings.fp8:
        raise InvalidRequest(
            "--fp8 leaves no weights that a LoRA could be merged into; leave --fp8 or --lora out",
            code="lora_unsupported",
            param="lora",
        )
    entries = [with_usable_loras(entry, settings.backend, settings.fp8) for entry in attach_loras(entries, loras)]
    return engines_on(on_devices, entries, settings) if on_devices else InProcessEngine(entries, settings), entries


def _triton(urls: Sequence[str], names: Sequence[str], settings: EngineSettings) -> tuple[Engine, Sequence[ModelEntry]]:
    """The engine behind Triton, and what its servers serve; how they compute is said in the model repository."""
    import asyncio
    from dataclasses import asdict

    from serving.engine.settings import EngineSettings
    from serving.triton.client import LiveModels, TritonEngine, discover

    defaults = asdict(EngineSettings(checkpoint_every_s=settings.checkpoint_every_s))
    for name, value in asdict(settings).items():
        if value != defaults[name]:
            raise InvalidRequest(
                f"{name} is the Triton server's: set it as a parameter of the model's config.pbtxt", param=name
            )
    engine = TritonEngine(urls, names)
    return engine, LiveModels(engine, asyncio.run(discover(urls, names)))
