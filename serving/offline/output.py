"""The output folder of offline rendering, and the pictures that rows name; both local or behind any fsspec URL.

    videos/ID.mp4          (or .webm, .gif)
    thumbnails/ID.jpg
    records/ID.json        a row that is complete; written last, and once only
    failures/ID.json       a row that failed; done again by the next run
    attempts/ID.json       a row being worked on, or one whose worker was lost
    results.jsonl, results.parquet, index.html    at the end of a run

Writes are atomic: locally a file is written under another name, synced and renamed; an object store shows an object
only when it is complete. The record makes a row complete and can be created once, so two workers at the same row never
both complete it. Pictures are bounded in size and decoded as the API decodes an upload.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

from PIL import Image

from model.errors import GenerationFailed, ImageTooLarge, InvalidRequest, StorageFull
from model.media.image import DEFAULT_LIMITS, ImageLimits, open_picture, to_png
from model.tasks import TaskSpec
from serving.offline.manifest import filesystem_of

VIDEOS: Final = "videos"
THUMBNAILS: Final = "thumbnails"
RECORDS: Final = "records"
FAILURES: Final = "failures"
ATTEMPTS: Final = "attempts"
_PARTS: Final = ".parts"
_LEFT_BEHIND_S: Final = 3600.0
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Output:
    """Files below one root, by relative name. Safe to use from several threads.

    Args:
        url: a path or fsspec URL; made if absent.

    Raises:
        MissingExtra, InvalidRequest: the URL's protocol cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = filesystem_of(url)
        self._local = Path(self._root) if "file" in _protocols(self._fs) else None
        if self._local is not None:
            (self._local / _PARTS).mkdir(parents=True, exist_ok=True)

    def put(self, name: str, data: bytes) -> None:
        """Write a file, in place of one that is there; once this returns it is whole.

        Raises:
            StorageFull: no room; nothing of the file is left.
        """
        if self._local is None:
            self._fs.pipe_file(self._path(name), data)
            return
        part = self._part(name, io.BytesIO(data))
        try:
            part.replace(self._local / name)
        finally:
            part.unlink(missing_ok=True)

    def put_file(self, name: str, source: Path) -> None:
        """Write a file that lies on this machine's disk; as `put`, but it is never in memory as a whole.

        Raises:
            StorageFull: no room; nothing of the file is left.
        """
        if self._local is None:
            self._fs.put_file(str(source), self._path(name))
            return
        with source.open("rb") as data:
            part = self._part(name, data)
        try:
            part.replace(self._local / name)
        finally:
            part.unlink(missing_ok=True)

    def put_once(self, name: str, data: bytes) -> bool:
        """Write a file unless it is there; whether this call wrote it. Of several callers at once, one does.

        Raises:
            StorageFull: no room; nothing of the file is left.
        """
        if self._local is None:
            return self._create(name, data)
        part = self._part(name, io.BytesIO(data))
        try:
            os.link(part, self._local / name)
        except FileExistsError:
            return False
        finally:
            part.unlink(missing_ok=True)
        return True

    def get(self, name: str) -> bytes | None:
        """A whole file, or None if there is none."""
        try:
            data: bytes = self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def names(self, folder: str) -> Iterator[str]:
        """The names of the files in a folder, without what follows the last dot."""
        if self._local is not None:
            where = self._local / folder
            if where.is_dir():
                with os.scandir(where) as entries:
                    yield from (posixpath.splitext(entry.name)[0] for entry in entries)
            return
        try:
            paths = self._fs.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return
        yield from (posixpath.splitext(posixpath.basename(str(path)))[0] for path in paths)

    def remove(self, name: str) -> None:
        """Remove a file; none is fine."""
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def sweep(self) -> None:
        """Remove what killed runs were writing, unless it is so young that another run may be at it."""
        if self._local is None:
            return
        for part in (self._local / _PARTS).iterdir():
            try:
                if time.time() - part.stat().st_mtime > _LEFT_BEHIND_S:
                    part.unlink(missing_ok=True)
            except FileNotFoundError:  # its run has just finished it
                continue

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _part(self, name: str, data: BinaryIO) -> Path:
        """The data under a name of its own, on the same disk and synced to it."""
        assert self._local is not None
        (self._local / name).parent.mkdir(parents=True, exist_ok=True)
        part = self._local / _PARTS / f"{posixpath.basename(name)}.{uuid4().hex}"
        try:
            with part.open("wb") as file:
                shutil.copyfileobj(data, file)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno in _FULL:
                raise StorageFull(f"no space left in {self.url} for {name}; free some and run again") from error
            raise
        return part

    def _create(self, name: str, data: bytes) -> bool:
        try:
            self._fs.pipe_file(self._path(name), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # An object store's refusal to overwrite comes as one error or another.
            if error.errno == errno.EINVAL and self._fs.exists(self._path(name)):
                return False
            raise
        return True


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


class Unreachable(GenerationFailed):
    """A place that does not answer now, and may the next time."""

    code = "picture_unreachable"


@dataclass(frozen=True, slots=True)
class PictureReader:
    """Opens pictures.

    Args:
        limits: on each.
    """

    limits: ImageLimits = DEFAULT_LIMITS

    def read(self, spec: TaskSpec, pictures: tuple[bytes | str, ...]) -> tuple[bytes, ...]:
        """Each picture as a plain PNG; blocks.

        Raises:
            InvalidRequest: one is not there or no picture; `param` names the column.
            Unreachable: its place does not answer.
        """
        return tuple(self._clean(name, one) for name, one in zip(spec.pictures, pictures, strict=True))

    def open(self, picture: bytes | str) -> Image.Image:
        """One picture, decoded; raises as `read`, not knowing the column."""
        return open_picture(picture if isinstance(picture, bytes) else self._fetch(picture), limits=self.limits)

    def _clean(self, name: str, picture: bytes | str) -> bytes:
        try:
            return to_png(self.open(picture))
        except InvalidRequest as error:
            error.param = name  # who decodes one picture knows it as `image`, whichever of the row's it is
            raise

    def _fetch(self, reference: str) -> bytes:
        filesystem, path = filesystem_of(reference)
        try:
            with filesystem.open(path, "rb") as file:
                data: bytes = file.read(self.limits.max_bytes + 1)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            why = "it is not there" if isinstance(error, FileNotFoundError) else type(error).__name__
            raise InvalidRequest(f"{reference} cannot be opened: {why}", code="picture_not_found") from error
        except Exception as error:  # each protocol has errors of its own
            raise Unreachable(f"{reference} cannot be read now: {type(error).__name__}: {error}") from error
        if len(data) > self.limits.max_bytes:
            raise ImageTooLarge(f"{reference} has more than {self.limits.max_bytes} bytes: save it smaller")
        return data
