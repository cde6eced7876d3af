"""The error tree: every error a user of stillmotion can meet, drawn in one place.

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
    `-- Cancelled                        the caller asked for the job to stop

Each carries a stable machine-readable `code` (the wire's `error.code`) and a message with the remedy.
"""

from __future__ import annotations


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
        feature: what was asked for.
        extra: the extra that brings it.
    """

    code = "missing_extra"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the [{extra}] extra: pip install 'stillmotion-server[{extra}]'")


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
