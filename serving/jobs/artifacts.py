"""The artifact store: one folder a job, each file complete or absent, on any fsspec filesystem.

A file is written under a temporary name and then renamed, so a reader, a crash or a full disk never leaves half of one
under its real name.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
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
_SIGNATURES: Final = {"config_kwargs": {"signature_version": "s3v4"}}
"""URLs are signed with their headers, as every region of S3 wants it; the client's default is the older way."""
_PART_BYTES: Final = 8 << 20
"""What S3's client holds of a file that is being written."""


class IncomingFile:
    """A file that comes in pieces. Every method blocks.

    Args:
        filesystem, path: where it goes.
    """

    def __init__(self, filesystem: AbstractFileSystem, path: str) -> None:
        self._fs = filesystem
        self._path = path
        self._digest = hashlib.sha256()
        with _room_for(path):
            self._file = filesystem.open(path, "wb", block_size=_PART_BYTES)
        self.size = 0

    def write(self, piece: bytes) -> None:
        """Take the next piece. Raises StorageFull."""
        with _room_for(self._path):
            self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)

    def finish(self) -> str:
        """There is no more to come: its SHA-256, in hex. Raises StorageFull."""
        with _room_for(self._path):
            self._file.close()
        return self._digest.hexdigest()

    def discard(self) -> None:
        """Nothing of it stays."""
        try:
            self._file.close()
        except OSError as error:
            _log.debug("%s could not be closed: %s", self._path, error)
        try:
            self._fs.rm_file(self._path)
        except FileNotFoundError:
            _log.debug("%s is not there", self._path)


@contextmanager
def _room_for(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        name = posixpath.basename(path)
        raise StorageFull(f"no space left to store {name}; delete old jobs or enlarge the disk") from error


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
            # Another server's files must be seen: what a listing once showed is not remembered.
            on_s3 = url.startswith(("s3://", "s3a://"))
            filesystem, root = url_to_fs(url, use_listings_cache=False, **(_SIGNATURES if on_s3 else {}))
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

    def incoming(self, folder: str, name: str) -> IncomingFile:
        """A file that comes in pieces. Its name must be new: it is there before it is whole."""
        self._fs.makedirs(self._folder(folder), exist_ok=True)
        return IncomingFile(self._fs, f"{self._folder(folder)}/{name}")

    def size(self, folder: str, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return int(self._fs.size(f"{self._folder(folder)}/{name}"))

    @property
    def signs_urls(self) -> bool:
        """Whether files have URLs of their own, which others can read and write for a time: on S3."""
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        return "s3" in protocols

    def signed_get(self, job_id: str, name: str, media_type: str, file_name: str, seconds: int) -> str:
        """A URL from which anybody can read a file for so many seconds; only where `signs_urls`.

        Args:
            media_type, file_name: what the answer's headers say.
        """
        disposition = f'inline; filename="{file_name}"'
        return str(
            self._fs.url(
                f"{self._folder(job_id)}/{name}",
                expires=seconds,
                client_method="get_object",
                ResponseContentType=media_type,
                ResponseContentDisposition=disposition,
            )
        )

    def signed_put(self, folder: str, name: str, size: int, sha256: str, seconds: int) -> tuple[str, dict[str, str]]:
        """A URL to which anybody can PUT this one file for so many seconds, and the headers that go with it.

        Only where `signs_urls`. Size and checksum are signed, so another file is refused by S3.

        Args:
            size: in bytes.
            sha256: in hex.
        """
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        url = self._fs.url(
            f"{self._folder(folder)}/{name}",
            expires=seconds,
            client_method="put_object",
            ContentLength=size,
            ChecksumSHA256=checksum,
        )
        return str(url), {"Content-Length": str(size), "x-amz-checksum-sha256": checksum}

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

    def sweep_files(self, folder: str, names: set[str], older_than_s: float = _YOUNG_S) -> list[str]:
        """Remove the files of one folder that are not known; their names. Young ones stay, as in `sweep`."""
        removed = []
        for path in self._list(self._folder(folder)):
            name = posixpath.basename(str(path))
            if name not in names and self._is_older(path, older_than_s):
                self._discard(path)
                removed.append(name)
        return removed

    def sweep(self, job_ids: set[str], older_than_s: float = _YOUNG_S) -> list[str]:
        """Remove the folders of jobs that are not known, and unfinished files; the removed folders' names.

        Args:
            older_than_s: what changed within so many seconds stays: another server may be about to store its job.
        """
        removed = []
        for path in self._list(self._root):
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

    def _list(self, folder: str) -> list[str]:
        """What lies in a folder; nothing where there is none, as on S3 until its first file."""
        try:
            return [str(path) for path in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

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
