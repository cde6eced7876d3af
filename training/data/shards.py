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
from typing import Any, cast

from model.errors import DataError
from training.data.excluded_clips import ExcludedClips
from training.data.split import Span

CURATED = "stillmotion-curated"
INSIDE = "#"
"""In an item's file, what stands between the shard and the clip in it."""


@dataclass(frozen=True, slots=True)
class Member:
    """One clip of a curated dataset: its file, `shards/000000.tar#ID.mp4`, and what its ID.json says."""

    file: str
    fields: dict[str, Any]

    @property
    def span(self) -> Span:
        """Where in its source it comes from."""
        return Span(self.fields["source"], self.fields["start_s"], self.fields["end_s"])

    @property
    def fps(self) -> float:
        """Average frames a second."""
        return float(Fraction(self.fields["fps"]))


def is_curated(folder: Path) -> bool:
    """Whether a folder holds a finished curated dataset."""
    manifest = folder / "manifest.json"
    return manifest.exists() and _manifest(manifest).get("name") == CURATED


def _manifest(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(path.read_text()))
    except ValueError as error:
        raise DataError(f"{path} is no valid JSON ({error}); prepare the dataset again") from error


def dataset_identity(folder: Path) -> dict[str, str]:
    """What a training run records of its data: the dataset's name, and a hash of what it holds.

    A curated dataset's is its `content_sha256`; any other's is that of its manifest, which names its items' hash.

    Raises:
        DataError: the folder has no manifest.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise DataError(f"{folder} is no dataset: it has no manifest.json")
    manifest = _manifest(path)
    return {"name": manifest.get("name", ""), "sha256": manifest.get("content_sha256") or _sha256(path)}


def members(folder: Path, excluded: ExcludedClips | None = None) -> Iterator[Member]:
    """The clips of a curated dataset, in the order of their ids.

    Args:
        excluded: records shards and clips that cannot be read, which are then passed over.

    Raises:
        DataError: nobody is to be told, and a shard is missing, not the one that the manifest names, or broken.
    """
    for shard in _manifest(folder / "manifest.json")["shards"]:
        count = 0
        try:
            for file, fields in _listed(folder, shard):
                count += 1
                if isinstance(fields, dict):
                    yield Member(file, fields)
                elif excluded is None:
                    raise DataError(f"{file} has no valid JSON beside it; run `stillmotion curate` again")
                else:
                    excluded.cannot_read(file, "its JSON is broken", unseen=True)
            if count < shard["clips"]:  # tarfile takes a tar that is cut short for one that ends there
                raise DataError(f"{folder / shard['file']} ends after {count} of its {shard['clips']} clips")
        except (DataError, OSError, tarfile.TarError) as error:
            if excluded is None:
                raise DataError(f"{error}; run `stillmotion curate` again") from error
            excluded.cannot_read(shard["file"], error, max(1, int(shard["clips"]) - count), unseen=True)


def _listed(folder: Path, shard: dict[str, Any]) -> Iterator[tuple[str, object]]:
    """Of each clip in a shard, its file and what its JSON says; None where that is broken."""
    path = folder / shard["file"]
    if not path.exists() or _sha256(path) != shard["sha256"]:
        raise DataError(f"{path} is not the shard that its manifest names")
    with tarfile.open(path) as tar:
        video = ""
        for entry in tar:
            if not entry.name.endswith(".json"):
                video = entry.name
                continue
            stream = tar.extractfile(entry)
            assert stream is not None
            file = f"{shard['file']}{INSIDE}{video}"
            try:
                yield file, json.load(stream)
            except ValueError:
                yield file, None


def open_member(folder: Path, file: str) -> io.BytesIO:
    """The bytes of a clip, by its item's file.

    Raises:
        DataError: there is no such clip in the shard.
    """
    shard, _, name = file.partition(INSIDE)
    try:
        offset, size = _places(folder / shard).get(name, (0, -1))
    except tarfile.TarError as error:
        raise DataError(f"{folder / shard} is no whole shard ({error}); run `stillmotion curate` again") from error
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
