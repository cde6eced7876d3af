"""The user's cache folder, and digests remembered in it. Imports no torch.

A weight file is hashed once: its digest is remembered under its path, together with its size, inode and modification
time. A file of which one of these has changed is hashed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)
_STORE: Final = "digests.json"
_MOST: Final = 1000
"""Digests remembered: the file is read and written for each new one."""
_BLOCK: Final = 1 << 20


def cache_folder() -> Path:
    """The user's cache folder for stillmotion; it may not exist yet. STILLMOTION_CACHE names another."""
    if named := os.environ.get("STILLMOTION_CACHE"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stillmotion"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "stillmotion" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillmotion"


class HashCounter:
    """Bytes read for hashing by this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0

    def add(self, count: int) -> None:
        """`count` more bytes were read."""
        with self._lock:
            self.bytes += count


HASHED: Final = HashCounter()


def read_into(digest: hashlib._Hash, file: Path) -> None:
    """Hash a file's content, and count its bytes."""
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
            HASHED.add(len(block))


def signature(files: Iterable[Path]) -> str:
    """What changes when one of the files does: names, sizes, inodes and modification times."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def remembered(key: str, files: Iterable[Path], compute: Callable[[], str]) -> str:
    """The digest `compute` gave for these files, as long as none of them has changed since.

    Args:
        key: what the digest is of, such as a path; one digest is remembered for each.
    """
    current = signature(files)
    store = cache_folder() / _STORE
    entry = _read(store).get(key)
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == current:
        return str(entry[1])
    value = compute()
    _write(store, key, [current, value])
    return value


def _read(store: Path) -> dict[str, object]:
    try:
        values = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(store: Path, key: str, entry: list[str]) -> None:
    """Add an entry; where two processes do so at once, one of the two is computed again another time."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        entries = _read(store) | {key: entry}
        text = json.dumps(dict(list(entries.items())[-_MOST:]))
        with tempfile.NamedTemporaryFile("w", dir=store.parent, prefix=".digests", delete=False) as stream:
            stream.write(text)
        Path(stream.name).replace(store)
    except OSError as error:
        _log.info("%s cannot be written (%s): weight files are hashed at each start", store, error)
