"""A download that is there whole or not at all: bytes go to a hidden file beside the target, which is then renamed."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class PartFile:
    """Collects a download; `size` bytes so far. Leaving the `with` block without `publish` removes it.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._path = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
        self._file: BinaryIO
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> PartFile:
        self._file = self._path.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Append."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Forget all so far."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of all bytes so far, in hex."""
        return self._hash.hexdigest()

    def publish(self) -> Path:
        """Put it in the target's place, in one step that a crash cannot split."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(self._target)
        return self._target
