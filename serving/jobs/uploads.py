"""Uploads: pictures that callers send apart from the requests that name them, each for a while, each its owner's alone.

An upload's id has the SHA-256 of its bytes: the same picture is the same upload, however often it comes. Its file has
a name of its own in the artifact store, new for every transfer, so that a file that is there belongs to the row that
names it, and a picture may come again while the sweeper removes its older self. What lies in the store is held against
the id when it is read: on S3 others put it there. All methods block on the database or the store: call them in a
thread.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from stillmotion.types import Upload

from model.errors import InvalidRequest
from model.media.image import ImageLimits
from serving.jobs.artifacts import Artifacts, IncomingFile
from serving.jobs.database import Database
from serving.jobs.errors import Conflict, UploadNotFound, UploadsFull
from serving.jobs.tables import UploadRow

FOLDER: Final = "uploads"
"""The folder of the artifact store, among those of jobs."""
_ID: Final = re.compile(r"upload_([0-9a-f]{64})\Z")
_AT_ONCE: Final = 100
"""Rows a transaction: others must not wait long for it."""


def upload_id(sha256: str) -> str:
    """The id of the picture with this SHA-256, in hex."""
    return f"upload_{sha256}"


def sha256_of(upload: str) -> str:
    """The SHA-256, in hex, that an id has. Raises UploadNotFound: it is none of ours."""
    match = _ID.match(upload)
    if match is None:
        raise UploadNotFound(upload)
    return match[1]


@dataclass(frozen=True, slots=True)
class UploadTerms:
    """What uploads may take.

    Args:
        kept_s: seconds until one is removed.
        owner_bytes: of all of one owner's together.
        signed_s: seconds for which a URL of S3 is good.
    """

    kept_s: float = 86400.0
    owner_bytes: int = 20_000_000_000
    signed_s: int = 900


@dataclass(frozen=True, slots=True)
class SignedPut:
    """Where a picture is to be PUT, with which headers; None and none where it is there already."""

    upload: Upload
    url: str | None
    headers: dict[str, str]


class UploadStore:
    """Uploads in a database and an artifact store.

    Args:
        database: open, with the tables in place.
        artifacts: where the files are.
        clock: Unix seconds.
        terms: how long and how much.
    """

    def __init__(
        self,
        database: Database,
        artifacts: Artifacts,
        clock: Callable[[], float] = time.time,
        terms: UploadTerms = UploadTerms(),
    ) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock
        self._terms = terms

    def check_room(self, owner: str, more: int) -> None:
        """Raise UploadsFull if so many more bytes would be more than the owner's uploads may take together."""
        with self._database.read() as session:
            self._check_room(session, owner, more)

    def incoming(self) -> tuple[str, IncomingFile]:
        """A new file, and its name."""
        name = uuid4().hex
        return name, self._artifacts.incoming(FOLDER, name)

    def add(self, owner: str, file: str, sha256: str, size: int) -> tuple[Upload, bool]:
        """Make a finished file the upload of its content; False beside it if it was there: it then stays longer.

        Raises:
            UploadsFull: the owner has no room for it; the file is removed.
        """
        try:
            upload, stored = self._insert(owner, upload_id(sha256), file, size)
        except BaseException:
            self._artifacts.discard(FOLDER, file)
            raise
        if stored != file:
            self._artifacts.discard(FOLDER, file)
        return upload, stored == file

    def sign(self, owner: str, sha256: str, size: int) -> SignedPut:
        """A URL under which the owner can PUT a picture of this SHA-256 and size into S3.

        Raises:
            Conflict: the artifacts do not lie on S3.
            UploadsFull: the owner has no room for it.
        """
        if not self._artifacts.signs_urls:
            raise Conflict(
                "this server's artifacts do not lie on S3; send the picture to POST /uploads", code="not_on_s3"
            )
        upload, file = self._insert(owner, upload_id(sha256), uuid4().hex, size)
        if self._artifacts.exists(FOLDER, file):
            return SignedPut(upload, None, {})
        url, headers = self._artifacts.signed_put(FOLDER, file, size, sha256, self._terms.signed_s)
        return SignedPut(upload.model_copy(update={"status": "waiting"}), url, headers)

    def get(self, owner: str, upload: str) -> Upload:
        """The owner's upload. Raises UploadNotFound."""
        row = self._row(owner, upload)
        stored = self._artifacts.exists(FOLDER, row.file)
        return _wire(row).model_copy(update={"status": "stored" if stored else "waiting"})

    def read(self, owner: str, upload: str, limits: ImageLimits) -> bytes:
        """The picture's bytes.

        Raises:
            UploadNotFound: the owner has no such upload (any more).
            InvalidRequest: nothing was PUT yet, or another file; `param` is `image`.
            ImageTooLarge: it has more bytes than `limits` allow.
        """
        row = self._row(owner, upload)
        try:
            limits.check_bytes(self._artifacts.size(FOLDER, row.file))
            data = self._artifacts.read(FOLDER, row.file)
        except FileNotFoundError as error:
            message = "the upload's picture is not there (yet); PUT it to the URL that was given, or upload it again"
            raise InvalidRequest(message, code="upload_incomplete", param="image") from error
        if hashlib.sha256(data).hexdigest() != sha256_of(upload):
            message = "what was PUT is not the picture whose SHA-256 was given; upload it again"
            raise InvalidRequest(message, code="upload_mismatch", param="image")
        return data

    def remove(self, owner: str, upload: str) -> None:
        """Remove the owner's upload. Raises UploadNotFound."""
        sha256_of(upload)
        with self._database.write() as session:
            row = session.get(UploadRow, (owner, upload), with_for_update=True)
            if row is None:
                raise UploadNotFound(upload)
            file = row.file
            session.delete(row)
        self._artifacts.discard(FOLDER, file)

    def expire(self) -> list[str]:
        """Remove uploads whose time is over; their ids."""
        due = select(UploadRow).where(UploadRow.expires_at <= self._clock()).limit(_AT_ONCE)
        ids: list[str] = []
        while True:
            with self._database.read() as session:
                if session.scalars(due).first() is None:
                    return ids
            files = []
            with self._database.write() as session:
                for row in session.scalars(due.with_for_update(skip_locked=True)).all():
                    ids.append(row.id)
                    files.append(row.file)
                    session.delete(row)
            self._artifacts.discard(FOLDER, *files)
            if not files:  # another server removes them
                return ids

    def sweep(self) -> list[str]:
        """Remove files that no row names, of transfers that broke off; their names."""
        with self._database.read() as session:
            names = set(session.scalars(select(UploadRow.file)))
        return self._artifacts.sweep_files(FOLDER, names)

    def _insert(self, owner: str, upload: str, file: str, size: int) -> tuple[Upload, str]:
        """Write the row, or renew the one that is there; the upload, and the name of the file that it is."""
        now = self._clock()
        with self._database.read() as session:
            before = session.get(UploadRow, (owner, upload))
        lost = before is not None and not self._artifacts.exists(FOLDER, before.file)
        with self._database.write() as session:
            self._database.serialise_admission(session)
            row = session.get(UploadRow, (owner, upload), with_for_update=True)
            if row is None or (lost and before is not None and row.file == before.file):
                self._check_room(session, owner, size if row is None else 0)
                row = session.merge(UploadRow(owner=owner, id=upload, file=file, bytes=size, created_at=now))
            row.expires_at = now + self._terms.kept_s
            session.flush()
            return _wire(row), row.file

    def _check_room(self, session: Session, owner: str, more: int) -> None:
        query = select(func.coalesce(func.sum(UploadRow.bytes), 0), func.min(UploadRow.expires_at))
        taken, first = session.execute(query.where(UploadRow.owner == owner)).one()
        if taken + more > self._terms.owner_bytes:
            wait = self._terms.kept_s if first is None else first - self._clock()
            raise UploadsFull(self._terms.owner_bytes, max(1, math.ceil(wait)))

    def _row(self, owner: str, upload: str) -> UploadRow:
        sha256_of(upload)
        with self._database.read() as session:
            row = session.get(UploadRow, (owner, upload))
        if row is None or row.expires_at <= self._clock():
            raise UploadNotFound(upload)
        return row


def _wire(row: UploadRow) -> Upload:
    return Upload(id=row.id, status="stored", bytes=row.bytes, created_at=row.created_at, expires_at=row.expires_at)
