"""Subsets of a curated dataset: an axis's worst share left out, as dataset folders that `stillmotion train` reads.

What is held out of the dataset (training.data.split) is held out of every subset, and the stills that proxies start
from come from there alone. Credits are no footage to train on elsewhere; here they are what an axis has to find.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from model.errors import DataError, InvalidRequest
from training.curation.filter import Mask, Rule, Scores
from training.curation.records import ClipRecord
from training.curation.tables import write_text
from training.data.split import clip_split
from training.data.starter import Item, item_to_json

SHARES = (0.0, 12.5, 25.0, 50.0)
"""Percent of the clips that a subset leaves out, as published."""
WORST = {
    "flow_mean": "lowest",
    "static_share": "highest",
    "camera_share": "highest",
    "text_area": "highest",
    "clip_similarity": "lowest",
    "aesthetic": "lowest",
    "sharpness": "lowest",
    "colourfulness": "lowest",
    "near_duplicate": "highest",
}
"""Which end of an axis is left out."""
FEWEST = 8
"""Scored clips below which no subset says anything."""


def rule_of(axis: str, share: float) -> Rule:
    """The rule that leaves out the worst `share` percent of an axis.

    Raises:
        InvalidRequest: an axis whose worse end is not known.
    """
    if axis not in WORST:
        raise InvalidRequest(f"{axis!r} has no known worse end; there are: {', '.join(WORST)}", param="axis")
    if WORST[axis] == "lowest":
        return Rule(axis, drop_lowest_percent=share)
    return Rule(axis, drop_highest_percent=share)


def limit_of(axis: str, share: float, scores: Scores) -> dict[str, float]:
    """The same rule as a fixed value, for a thresholds file: `{"at_least": 0.03}`."""
    low, high = rule_of(axis, share).limits(scores.of(axis))
    return {"at_least": low} if WORST[axis] == "lowest" else {"at_most": high}


def leaves(axis: str, share: float, scores: Scores) -> Mask:
    """Which clips [N] the subset keeps: exactly the best-scored, ties broken by clip id.

    Raises:
        DataError: fewer than eight clips have the score; no subset would say anything.
    """
    values = scores.of(axis)
    scored = np.flatnonzero(~np.isnan(values))
    if len(scored) < FEWEST:
        raise DataError(f"only {len(scored)} clips have {axis}: score the dataset on it before calibrating")
    rule_of(axis, share)
    order = scored[np.argsort(values[scored] * (1 if WORST[axis] == "lowest" else -1), kind="stable")]
    mask = np.zeros(len(values), bool)
    mask[order[round(share / 100 * len(order)) :]] = True
    return mask


def held_out(clips: Sequence[ClipRecord]) -> set[str]:
    """Ids of the clips that no proxy may see."""
    return {clip.clip_id for clip in clips if clip_split(clip.source, clip.start_s, clip.end_s) == "heldout"}


def item_of(clip: ClipRecord, dataset: Path, folder: Path, split: str) -> Item:
    """A clip as an item of a dataset folder that lies elsewhere."""
    file = os.path.relpath(dataset / clip.file, folder)
    return Item(clip.clip_id, "shot", file, clip.source, clip.start_s, clip.end_s, clip.frames, float(clip.fps), split)


def write_items(folder: Path, items: Sequence[Item], fields: dict[str, object]) -> None:
    """A dataset folder of items whose files lie where they are."""
    lines = "".join(json.dumps(item_to_json(item)) + "\n" for item in items)
    write_text(folder / "items.jsonl", lines)
    manifest = {"items_sha256": hashlib.sha256(lines.encode()).hexdigest(), **fields}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def write_subset(
    folder: Path, dataset: Path, clips: Sequence[ClipRecord], mask: Collection[str], kept_out: Collection[str]
) -> None:
    """A subset's dataset folder: its clips to train on, and all held-out clips.

    Raises:
        DataError: nothing is left to train on.
    """
    items = [
        item_of(clip, dataset, folder, "heldout" if clip.clip_id in kept_out else "train")
        for clip in clips
        if clip.clip_id in mask or clip.clip_id in kept_out
    ]
    if not any(item.split == "train" for item in items):
        raise DataError(f"{folder.name} leaves no clip to train on")
    write_items(folder, items, {"name": folder.name, "of": str(dataset)})
