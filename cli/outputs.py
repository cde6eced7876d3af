"""Output files of commands: no file is replaced unasked, folders are checked first, writes are atomic."""

from __future__ import annotations

import secrets
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import typer

from model.errors import InvalidRequest, StillmotionError


def check_new(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse to replace files; on a terminal, ask.

    Raises:
        InvalidRequest: a file is there, and neither `overwrite` nor an answer says that it may go.
    """
    existing = [path for path in dict.fromkeys(paths) if path.exists()]
    if not existing or overwrite:
        return
    names = " and ".join(map(str, existing))
    if sys.stdin.isatty() and sys.stderr.isatty() and typer.confirm(f"Replace {names}?", err=True):
        return
    raise InvalidRequest(
        f"{names} already {'exists' if len(existing) == 1 else 'exist'}: name another file with -o, or replace with "
        "--overwrite",
        param="out",
    )


def check_writable(folder: Path) -> None:
    """Create the folder, and see that a file can be created in it.

    Raises:
        StillmotionError: it cannot; raised before the work whose result would have nowhere to go.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".stillmotion-"):
            pass
    except OSError as error:
        raise StillmotionError(
            f"cannot write to the folder {folder} ({error.strerror}); name another one", param="out"
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: under another name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
