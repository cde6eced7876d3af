"""Versions of checkpoints: SHA-256 over files, computed by threads while the files are loaded. No torch.

A hub cache names its blobs by their hash, and other files are hashed once and remembered (model.sources.layout).
The rest, the first start on a folder of gigabytes, is many seconds of a core: `PendingVersion` stands for the version
meanwhile, and whoever reads it first waits.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from model.errors import CheckpointError
from model.sources.hub import blob_sha256
from model.sources.layout import read_into, recalled, remembered

SOON: Final = 256 * 2**20
"""Bytes that are hashed before anything else is done: most of a second of a core. More are hashed meanwhile."""


_NICE: Final = 10
"""Of threads that hash: a tenth of a core beside one that loads, more as soon as one is free."""


def _give_way() -> None:
    """Lower the priority of this thread and of those it starts; Linux alone has one for each thread."""
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), max(_NICE, os.nice(0)))


class PendingVersion:
    """A version that is computed by a thread of its own; equal to another by its value, and pickled as that.

    Args:
        compute: gives the version; an error of it is raised by `result`.
    """

    def __init__(self, compute: Callable[[], str]) -> None:
        self._done: Future[str] = Future()
        Thread(target=self._run, args=(compute,), name="stillmotion-version", daemon=True).start()

    def _run(self, compute: Callable[[], str]) -> None:
        _give_way()
        try:
            self._done.set_result(compute())
        except OSError as error:
            self._done.set_exception(CheckpointError(f"a weight file cannot be read: {error}", param="model"))
        except BaseException as error:  # noqa: BLE001 - raised to whoever reads the version
            self._done.set_exception(error)

    def result(self) -> str:
        """The version, once it is known.

        Raises:
            CheckpointError: a file cannot be read.
        """
        return self._done.result()

    def __eq__(self, other: object) -> bool:
        return str(other) == self.result() if isinstance(other, str | PendingVersion) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.result())

    def __str__(self) -> str:
        return self.result()

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self.result(),)


def unread_bytes(files: Iterable[Path]) -> int:
    """What `content_sha256s` would read of these files now."""
    return sum(file.stat().st_size for file in files if known_sha256(file) is None)


def known_sha256(file: Path) -> str | None:
    """SHA-256 of a file whose content need not be read for it; None for any other."""
    return blob_sha256(file) or recalled(str(file.resolve()), [file])


def content_sha256(file: Path) -> str:
    """SHA-256 of a file: a hub cache names its blobs by it; any other file is read once, then remembered."""

    def compute() -> str:
        digest = hashlib.sha256()
        read_into(digest, file)
        return digest.hexdigest()

    return blob_sha256(file) or remembered(str(file.resolve()), [file], compute)


def content_sha256s(files: Sequence[Path]) -> list[str]:
    """`content_sha256` of each, several at a time: the largest first, each core at one file.

    Raises:
        OSError: a file cannot be read.
    """
    waiting: SimpleQueue[Path] = SimpleQueue()
    for file in sorted(set(files), key=lambda file: -file.stat().st_size):
        waiting.put(file)
    found: dict[Path, str] = {}
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not errors:
                file = waiting.get_nowait()
                found[file] = content_sha256(file)
        except Empty:
            pass
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    # Daemons: a command that ends meanwhile does not wait for them.
    threads = [Thread(target=work, daemon=True) for _ in range(min(len(files), os.cpu_count() or 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [found[file] for file in files]
