"""The base of the error tree: every error a user of stillmotion can meet is a StillmotionError.

    StillmotionError
    |-- InvalidRequest (ValueError)      the caller can mend it; `param` names the field
    |   |-- UnreadableImage              not an image we accept, or broken
    |   `-- ImageTooLarge                beyond the pixel or byte limit
    |-- CheckpointError (ValueError)     a model folder is missing, incomplete or of another kind
    |-- DataError (ValueError)           a dataset is missing, changed, or held out
    |-- MissingExtra (ImportError)       an optional dependency is not installed
    |-- GenerationFailed (RuntimeError)  a job failed while it ran
    |   |-- OutOfMemory
    |   `-- StorageFull
    `-- Cancelled                        the caller had the job stopped

Each carries a stable machine-readable `code` (the wire's `error.code`) and a message with the remedy. Errors of one
area stand beside what raises them: serving/jobs/errors.py, serving/gateway/errors.py, export/parity.py and others.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit


class StillmotionError(Exception):
    """Base of every error raised on purpose.

    Args:
        message: what went wrong and what to do about it, for a person.
        code: stable identifier, snake_case; the class's own when left out.
        param: the request field or option at fault, if one is.
    """

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(StillmotionError, ValueError):
    """A request that its sender can mend."""

    code = "invalid_value"


class UnreadableImage(InvalidRequest):
    """Bytes that are not a complete still image in a format we accept."""

    code = "unreadable_image"


class ImageTooLarge(InvalidRequest):
    """An image beyond the limit on pixels or bytes."""

    code = "image_too_large"


class CheckpointError(StillmotionError, ValueError):
    """A model folder that is missing, incomplete, or of another task or size."""

    code = "bad_checkpoint"


class DataError(StillmotionError, ValueError):
    """A dataset that is missing, does not match its hashes, or is held out from training."""

    code = "bad_data"


class MissingExtra(StillmotionError, ImportError):
    """An optional dependency is not installed.

    Args:
        feature: what needs it.
        extra: the extra, or several with commas between, that bring it.
    """

    code = "missing_extra"

    def __init__(self, feature: str, extra: str) -> None:
        plural = "s" if "," in extra else ""
        super().__init__(f"{feature} needs the [{extra}] extra{plural}: {install_command(extra)}")
        self.feature = feature
        self.extra = extra


def install_command(extra: str) -> str:
    """The command that installs an extra into this process's environment: from its checkout, or from an index."""
    python = f"{shlex.quote(sys.executable or 'python')} -m pip install"
    checkout = _checkout()
    if checkout is None:
        return f"{python} 'stillmotion-server[{extra}]'"
    constraints, client = checkout / "constraints.txt", checkout / "client"
    options = f" -c {shlex.quote(str(constraints))}" if constraints.is_file() else ""
    options += f" -e {shlex.quote(str(client))}" if client.is_dir() else ""
    return f"{python}{options} -e {shlex.quote(f'{checkout}[{extra}]')}"


def _checkout() -> Path | None:
    """The folder of an editable install (PEP 610)."""
    from importlib.metadata import PackageNotFoundError, distribution  # slow to import, and rarely needed

    try:
        origin = json.loads(distribution("stillmotion-server").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    url = urlsplit(str(origin.get("url", "")))
    editable = origin.get("dir_info", {}).get("editable", False)
    return Path(unquote(url.path)) if editable and url.scheme == "file" else None


class GenerationFailed(StillmotionError, RuntimeError):
    """A job failed while it ran."""

    code = "generation_failed"


class OutOfMemory(GenerationFailed):
    """The device ran out of memory, even after the work was split."""

    code = "out_of_memory"


class StorageFull(GenerationFailed):
    """The disk that holds artifacts is full."""

    code = "storage_full"


class Cancelled(StillmotionError):
    """The job was cancelled between two steps."""

    code = "cancelled"
