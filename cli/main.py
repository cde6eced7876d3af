"""The command's entry: every subcommand, and how a command fails: one line on stderr that says what to do.

Exit codes: 0 done, 1 failed, 2 wrong usage. A traceback means a bug in stillmotion.

Nothing heavy is imported here or at the top of a subcommand's module: `stillmotion --help` answers at once.
"""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.batch import batch
from cli.check import check
from cli.curate import curate
from cli.data import data
from cli.evaluate import evaluate
from cli.export import export
from cli.generate import generate
from cli.keys import keys
from cli.models import models
from cli.replay import replay
from cli.serve import serve
from cli.train import train
from cli.triton import triton
from model.errors import ImageTooLarge, InvalidRequest, MissingExtra, StillmotionError, UnreadableImage

FAILED = 1
WRONG_USAGE = 2

_EXTRAS = {
    **dict.fromkeys(("torch", "diffusers", "transformers", "safetensors", "jaxtyping", "accelerate"), "engine"),
    **dict.fromkeys(
        ("fastapi", "fastapi_offline", "starlette", "uvicorn", "httptools", "uvloop", "multipart"), "serve"
    ),
    **dict.fromkeys(("alembic", "sqlalchemy", "pydantic_settings", "sse_starlette", "fsspec", "httpx"), "serve"),
    **dict.fromkeys(("multipart", "prometheus_client", "stillmotion"), "serve"),
    "s3fs": "s3",
    "aiohttp": "batch",
    **dict.fromkeys(("pyarrow", "ray", "rapidocr"), "curate"),
    **dict.fromkeys(("scenedetect", "cv2", "scipy", "skimage", "matplotlib", "tensorboard", "tqdm"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "export"),
    "openvino": "openvino",
    **dict.fromkeys(("tritonclient", "grpc"), "triton"),
}
"""Which extra brings a package that is not there."""

COMMAND_EXTRAS = {
    "generate": "engine",
    "replay": "engine,serve",
    "serve": "engine,serve",
    "keys": "serve",
    "batch": "batch",
    "curate": "curate",
    "train": "train",
    "eval": "train",
    "data": "train",
    "export": "export",
    "triton": "triton",
}
"""The extras that a command needs, whichever package it misses first."""

CONTAINED = {
    "engine,serve": {"engine", "serve"},
    "train": {"engine"},
    "export": {"engine", "triton"},
    "batch": {"engine", "serve", "curate"},
    "curate": {"engine", "train", "export"},
}
"""Extras whose packages, as far as a command imports them, another one brings too."""


class Commands(TyperGroup):
    """The group of all commands; turns the errors we raise on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except (StillmotionError, ModuleNotFoundError, OSError) as error:
            line = describe_error(error, ctx.invoked_subcommand)
            if line is None:
                raise
            typer.echo(f"error: {line}", err=True)
            raise typer.Exit(_exit_code(error)) from error


def describe_error(error: Exception, command: str | None = None) -> str | None:
    """One line for an error that the user can mend, with the remedy; None for a bug.

    Args:
        command: whose own extra is named where a package is missing.
    """
    if isinstance(error, MissingExtra):
        return MissingExtra(error.feature, own_extra(command, error.extra)).message
    if isinstance(error, StillmotionError):
        return _one_line(error)
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            return None
        return MissingExtra(f"this command (it imports {error.name})", own_extra(command, extra)).message
    return _os_line(error) if isinstance(error, OSError) and error.errno is not None else None


def own_extra(command: str | None, extra: str) -> str:
    """The extra to name to a command's user: the command's own, where that brings what is missing."""
    own = COMMAND_EXTRAS.get(command or "", extra)
    return own if extra in CONTAINED.get(own, ()) else extra


def _one_line(error: StillmotionError) -> str:
    lines = [line.strip() for line in error.message.splitlines()] if hasattr(error, "message") else [str(error)]
    return " ".join(filter(None, lines))


def _exit_code(error: Exception) -> int:
    at_fault = isinstance(error, InvalidRequest) and not isinstance(error, UnreadableImage | ImageTooLarge)
    return WRONG_USAGE if at_fault else FAILED


def _os_line(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space and run the command again"
    return f"{where}{error.strerror}"


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
