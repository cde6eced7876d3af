"""Reading a curated dataset where the starter dataset is read: its clips as items, straight out of the shards.

A shard is a plain tar (WebDataset's layout), so a clip lies at a known place in one file: nothing is unpacked.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from model.errors import DataError
from training.data.split import Span

CURATED = "stillmotion-curated"
INSIDE = "#"
"""In an item's file, what stands between the shard and the clip in it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One clip of a curated dataset: its file, `shards/000000.tar#ID.mp4`, and what its ID.json says."""

    file: str
    told: dict[str, Any]

    @property
    def span(self) -> Span:
        """Where in its source it comes from."""
        return Span(self.told["source"], self.told["start_s"], self.told["end_s"])

    @property
    def fps(self) -> float:
        """Average frames a second."""
        return float(Fraction(self.told["fps"]))


def is_curated(folder: Path) -> bool:
    """Whether a folder holds a finished curated dataset."""
    manifest = folder / "manifest.json"
    return manifest.exists() and json.loads(manifest.read_text()).get("name") == CURATED


def dataset_identity(folder: Path) -> dict[str, str]:
    """What a training run records of its data: the dataset's name, and a hash of what it holds.

    A curated dataset's is its `content_sha256`; any other's is that of its manifest, which names its items' hash.

    Raises:
        DataError: the folder has no manifest.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise DataError(f"{folder} is no dataset: it has no manifest.json")
    manifest = json.loads(path.read_text())
    return {"name": manifest.get("name", ""), "sha256": manifest.get("content_sha256") or _sha256(path)}


def members(folder: Path) -> Iterator[Member]:
    """The clips of a curated dataset, in the order of their ids.

    Raises:
        DataError: a shard is missing, or not the one that the manifest names.
    """
    for shard in json.loads((folder / "manifest.json").read_text())["shards"]:
        path = folder / shard["file"]
        if not path.exists() or _sha256(path) != shard["sha256"]:
            raise DataError(f"{path} is not the shard that its manifest names; run `stillmotion curate` again")
        with tarfile.open(path) as tar:
            video = ""
            for entry in tar:
                if not entry.name.endswith(".json"):
                    video = entry.name
                    continue
                told = tar.extractfile(entry)
                assert told is not None
                yield Member(f"{shard['file']}{INSIDE}{video}", json.load(told))


def open_member(folder: Path, file: str) -> io.BytesIO:
    """The bytes of a clip, by its item's file.

    Raises:
        DataError: there is no such clip in the shard.
    """
    shard, _, name = file.partition(INSIDE)
    offset, size = _places(folder / shard).get(name, (0, -1))
    if size < 0:
        raise DataError(f"{folder / shard} holds no {name}")
    with (folder / shard).open("rb") as stream:
        stream.seek(offset)
        return io.BytesIO(stream.read(size))


@functools.lru_cache(maxsize=64)
def _places(shard: Path) -> dict[str, tuple[int, int]]:
    with tarfile.open(shard) as tar:
        return {entry.name: (entry.offset_data, entry.size) for entry in tar}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
