"""The artifact store: one folder a job, each file complete or absent, on any fsspec filesystem.

A file is written under a temporary name and then renamed, so a reader, a crash or a full disk never leaves half of one
under its real name.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import posixpath
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, cast
from uuid import uuid4

from fsspec import AbstractFileSystem  # type: ignore[import-untyped]
from fsspec.core import url_to_fs  # type: ignore[import-untyped]

from model.errors import InvalidRequest, MissingExtra, StorageFull
from serving.jobs.records import StoredFile

_log = logging.getLogger(__name__)
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_CHUNK: Final = 256 * 1024
_YOUNG_S: Final = 3600.0


class Artifacts:
    """Files below one root, by job and name.

    Args:
        filesystem: where.
        root: the folder there; made if absent.
    """

    def __init__(self, filesystem: AbstractFileSystem, root: str) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._fs.makedirs(self._root, exist_ok=True)

    @classmethod
    def open(cls, url: str) -> Artifacts:
        """The store at a path or an fsspec URL.

        Raises:
            InvalidRequest: no such protocol, or a place where no folder can be made.
            MissingExtra: S3's package is not installed.
        """
        try:
            filesystem, root = url_to_fs(url)
            return cls(filesystem, root)
        except ImportError as error:
            if url.startswith(("s3://", "s3a://")):
                raise MissingExtra("artifacts on S3", "s3") from error
            raise InvalidRequest(f"artifacts at {url}: {error}", param="artifacts") from error
        except ValueError as error:
            raise InvalidRequest(f"artifacts at {url}: {error}", param="artifacts") from error
        except OSError as error:
            raise InvalidRequest(
                f"artifacts need a folder, and {url} is none and cannot be made one ({error.strerror or error}); name "
                "another with --artifacts",
                param="artifacts",
            ) from error

    def write(self, job_id: str, name: str, data: bytes, media_type: str) -> StoredFile:
        """Store a file of a result; once this returns it is whole. Raises as `put`."""
        self.put(job_id, name, data)
        return StoredFile(name, media_type, len(data), hashlib.sha256(data).hexdigest())

    def put(self, job_id: str, name: str, data: bytes) -> None:
        """Store a file; once this returns it is whole.

        Raises:
            StorageFull: no room; nothing of the file is left.
        """
        folder = self._folder(job_id)
        temporary = f"{folder}/.{name}.{uuid4().hex}.part"
        try:
            self._fs.makedirs(folder, exist_ok=True)
            try:
                self._fs.pipe_file(temporary, data)
                self._fs.mv(temporary, f"{folder}/{name}")
            except BaseException:
                self._discard(temporary)
                raise
        except OSError as error:
            if error.errno in _FULL:
                raise StorageFull(
                    f"no space left to store {name} ({len(data)} bytes); delete old jobs or enlarge the disk"
                ) from error
            raise

    def read(self, job_id: str, name: str) -> bytes:
        """A whole file. Raises FileNotFoundError."""
        return cast(bytes, self._fs.cat_file(f"{self._folder(job_id)}/{name}"))

    def exists(self, job_id: str, name: str) -> bool:
        """Whether the file is there."""
        return bool(self._fs.exists(f"{self._folder(job_id)}/{name}"))

    def pieces(self, job_id: str, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes `start` to `stop` (exclusive) of a file, in pieces. Raises FileNotFoundError at the first."""
        with self._fs.open(f"{self._folder(job_id)}/{name}", "rb") as file:
            file.seek(start)
            left = stop - start
            while left > 0 and (piece := file.read(min(_CHUNK, left))):
                left -= len(piece)
                yield piece

    def remove(self, job_id: str) -> None:
        """Remove every file of a job; none is fine."""
        try:
            self._fs.rm(self._folder(job_id), recursive=True)
        except FileNotFoundError:
            _log.debug("job %s has no files", job_id)

    def discard(self, job_id: str, *names: str) -> None:
        """Remove these files of a job; those it does not have are fine."""
        for name in names:
            self._discard(f"{self._folder(job_id)}/{name}")

    def sweep(self, job_ids: set[str], older_than_s: float = _YOUNG_S) -> list[str]:
        """Remove the folders of jobs that are not known, and unfinished files; the removed folders' names.

        Args:
            older_than_s: what changed within so many seconds stays: another server may be about to store its job.
        """
        removed = []
        for path in self._fs.ls(self._root, detail=False):
            name = posixpath.basename(str(path).rstrip("/"))
            if name not in job_ids:
                # An empty folder may be one whose first file is being written now.
                if all(self._is_older(one, older_than_s) for one in self._fs.find(path) or [path]):
                    self._fs.rm(path, recursive=True)
                    removed.append(name)
                continue
            for file in self._fs.ls(path, detail=False):
                if str(file).endswith(".part") and self._is_older(file, older_than_s):
                    self._fs.rm(file)
        return removed

    def _is_older(self, path: str, seconds: float) -> bool:
        try:
            changed = cast(datetime, self._fs.modified(path))
        except FileNotFoundError:  # renamed or removed since it was listed
            return False
        if changed.tzinfo is None:
            changed = changed.replace(tzinfo=UTC)
        return (datetime.now(UTC) - changed).total_seconds() >= seconds

    def _folder(self, job_id: str) -> str:
        return f"{self._root}/{job_id}"

    def _discard(self, path: str) -> None:
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            _log.debug("%s is not there", path)
