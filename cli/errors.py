"""How a command fails: one line on stderr that says what to do, and the exit code.

0 done, 1 failed, 2 wrong usage. A traceback means a bug in stillmotion.
"""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from model.errors import ImageTooLarge, InvalidRequest, MissingExtra, StillmotionError, UnreadableImage

FAILED = 1
WRONG_USAGE = 2

_EXTRAS = {
    "torch": "engine",
    "diffusers": "engine",
    "transformers": "engine",
    "safetensors": "engine",
    "jaxtyping": "engine",
    "accelerate": "engine",
    "fastapi": "serve",
    "uvicorn": "serve",
    "sqlalchemy": "serve",
    "alembic": "serve",
    "pydantic_settings": "serve",
    "sse_starlette": "serve",
    "fsspec": "serve",
    "prometheus_client": "serve",
    "stillmotion": "serve",
    "s3fs": "s3",
    "aiohttp": "batch",
    "pyarrow": "curate",
    "ray": "curate",
    "scenedetect": "train",
    "cv2": "train",
    "scipy": "train",
    "tensorboard": "train",
}
"""Which extra brings a package that is not there."""


class Commands(TyperGroup):
    """The group of all commands; turns the errors we raise on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except StillmotionError as error:
            typer.echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(_exit_code(error)) from error
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            typer.echo(f"error: {MissingExtra(f'this command (it imports {error.name})', extra)}", err=True)
            raise typer.Exit(FAILED) from error
        except OSError as error:
            if error.errno is None:
                raise
            typer.echo(f"error: {_os_line(error)}", err=True)
            raise typer.Exit(FAILED) from error


def _one_line(error: StillmotionError) -> str:
    lines = [line.strip() for line in error.message.splitlines()] if hasattr(error, "message") else [str(error)]
    return " ".join(filter(None, lines))


def _exit_code(error: StillmotionError) -> int:
    at_fault = isinstance(error, InvalidRequest) and not isinstance(error, UnreadableImage | ImageTooLarge)
    return WRONG_USAGE if at_fault else FAILED


def _os_line(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{where}the disk is full; free some space and run the command again"
    return f"{where}{error.strerror}"
