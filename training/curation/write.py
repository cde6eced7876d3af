"""The last stage: the kept clips as WebDataset shards, and the manifest whose hash a training run records.

A shard is a plain tar: for each clip its file, and ID.json with where it comes from (source, times, bytes), its split,
its motion bucket, its scores and captions. Clips come in the order of their ids, every header field that depends on the
machine is zero: the same selection gives the same bytes.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import DataError
from training.curation.records import CaptionRecord, ClipRecord, Cut, ScoreRecord, SourceRecord
from training.curation.speed import SCORE as SPEED
from training.curation.tables import read_table, replace_file, to_row, write_text
from training.data.motion_bucket import MotionMap
from training.data.split import clip_split

NAME, FORMAT = "stillmotion-curated", 1
SHARD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Tables:
    """A dataset folder's tables."""

    sources: list[SourceRecord]
    cuts: list[Cut]
    clips: list[ClipRecord]
    scores: list[ScoreRecord]
    captions: list[CaptionRecord]
    kept: frozenset[str]
    selection: list[dict[str, Any]]


def read_tables(dataset: Path) -> Tables:
    """Read all tables of a dataset folder.

    Raises:
        DataError: one is missing.
        MissingExtra: pyarrow is not installed.
    """
    import pyarrow.parquet as pq

    clips = read_table(dataset / "clips.parquet", ClipRecord)
    path = dataset / "selection.parquet"
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    kept = {row["clip_id"] for row in rows if row["kept"]} if path.exists() else {clip.clip_id for clip in clips}
    return Tables(
        read_table(dataset / "sources.parquet", SourceRecord),
        read_table(dataset / "cuts.parquet", Cut),
        clips,
        [one for table in sorted((dataset / "scores").glob("*.parquet")) for one in read_table(table, ScoreRecord)],
        read_table(dataset / "captions.parquet", CaptionRecord),
        frozenset(kept),
        rows,
    )


def write_dataset(dataset: Path, settings: dict[str, Any], shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """Write the shards and the manifest of a dataset folder whose tables are there; returns the manifest.

    Raises:
        DataError: a table or a clip's file is missing, or a file is not the one that was cut.
    """
    tables = read_tables(dataset)
    motion = MotionMap()
    members = _described(tables, motion)
    shards = _write_shards(
        dataset, [clip for clip in tables.clips if clip.clip_id in tables.kept], members, shard_bytes
    )
    content = content_sha256(tables, shards)
    splits = Counter(member["split"] for member in members.values())
    manifest = {
        "name": NAME,
        "format": FORMAT,
        "content_sha256": content,
        "clips": len(tables.clips),
        "kept": len(members),
        "kept_seconds": round(sum(member["end_s"] - member["start_s"] for member in members.values()), 3),
        "splits": dict(sorted(splits.items())),
        "motion_map": asdict(motion),
        "settings": settings,
        "sources": [
            {"name": Path(one.path).name, "sha256": one.sha256, "duration_s": one.duration_s, "error": one.error}
            for one in tables.sources
        ],
        "shards": shards,
    }
    write_text(dataset / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest


def content_sha256(tables: Tables, shards: Sequence[dict[str, Any]]) -> str:
    """A hash over what a dataset holds: every row of every table, and the shards. Not over paths or dates."""
    digest = hashlib.sha256()
    parts: list[Iterable[Any]] = [
        map(_source_row, tables.sources),
        map(to_row, tables.cuts),
        map(to_row, tables.clips),
        map(to_row, tables.scores),
        map(to_row, tables.captions),
        tables.selection,
        shards,
    ]
    for part in parts:
        for row in part:
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        digest.update(b"--\n")
    return digest.hexdigest()


def _source_row(source: SourceRecord) -> dict[str, Any]:
    row = {**to_row(source), "path": Path(source.path).name}
    return row if source.warning else {name: value for name, value in row.items() if name != "warning"}


def _described(tables: Tables, motion: MotionMap) -> dict[str, dict[str, Any]]:
    """What ID.json says of each kept clip."""
    members: dict[str, dict[str, Any]] = {}
    for clip in tables.clips:
        if clip.clip_id in tables.kept:
            split = clip_split(clip.source, clip.start_s, clip.end_s)
            members[clip.clip_id] = {
                **to_row(clip),
                "split": split,
                "motion_bucket": None,
                "scores": {},
                "captions": {},
            }
    for score in tables.scores:
        member = members.get(score.clip_id)
        if member is None or score.value is None:
            continue
        member["scores"][score.name] = score.value
        if score.name == SPEED:
            member["motion_bucket"] = motion.bucket(score.value)
    for caption in tables.captions:
        if caption.clip_id in members and caption.text is not None:
            members[caption.clip_id]["captions"][caption.captioner] = caption.text
    return members


def _write_shards(
    dataset: Path, clips: Sequence[ClipRecord], members: dict[str, dict[str, Any]], shard_bytes: int
) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = []
    for k, group in enumerate(_grouped(dataset, clips, shard_bytes)):
        path = dataset / "shards" / f"{k:06d}.tar"
        replace_file(path, functools.partial(_write_shard, dataset, group, members))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(
            {"file": f"shards/{path.name}", "sha256": digest, "bytes": path.stat().st_size, "clips": len(group)}
        )
    for path in (dataset / "shards").glob("*.tar"):
        if f"shards/{path.name}" not in {one["file"] for one in shards}:
            path.unlink()  # of an earlier selection
    return shards


def _grouped(dataset: Path, clips: Sequence[ClipRecord], shard_bytes: int) -> list[list[ClipRecord]]:
    groups: list[list[ClipRecord]] = []
    filled = shard_bytes
    for clip in clips:
        path = dataset / clip.file
        if not path.exists():
            raise DataError(f"{path} is gone; run `stillmotion curate` again to cut it anew")
        if filled + path.stat().st_size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(clip)
        filled += path.stat().st_size
    return groups


def _write_shard(dataset: Path, clips: Sequence[ClipRecord], members: dict[str, dict[str, Any]], target: Path) -> None:
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as tar:
        for clip in clips:
            data = (dataset / clip.file).read_bytes()
            if hashlib.sha256(data).hexdigest() != clip.sha256:
                raise DataError(
                    f"{clip.file} is not the file that was cut; delete it and run `stillmotion curate` again"
                )
            _add(tar, f"{clip.clip_id}{Path(clip.file).suffix}", data)
            _add(tar, f"{clip.clip_id}.json", json.dumps(members[clip.clip_id], sort_keys=True).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))
