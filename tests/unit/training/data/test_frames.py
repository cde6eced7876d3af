"""Clips that cannot be read are counted, named and left out, up to a stated share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model.errors import DataError
from model.video import encode_video
from training.data.frames import load_clips
from training.data.starter import Item


def dataset(folder: Path) -> list[Item]:
    """Four shots; the third is cut short, the fourth is no video."""
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8)
    whole = encode_video(frames, 24, "mp4")
    item = Item("a", "shot", "a.mp4", "film", 0, 1, 6, 24.0, "train")
    for name, content in (("a", whole), ("b", whole), ("c", whole[: len(whole) // 2]), ("d", b"no video at all")):
        (folder / f"{name}.mp4").write_bytes(content)
    return [dataclasses.replace(item, id=name, file=f"{name}.mp4") for name in "abcd"]


def test_unreadable_clips_are_reported_by_name_and_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    items = dataset(tmp_path)
    clips = load_clips(tmp_path, items, tmp_path / "cache", 16, 24, lambda what, *_: told.append(what), 0.5)
    assert [clip.item.id for clip in clips][:2] == ["a", "b"] and "d" not in [clip.item.id for clip in clips]
    left_out = [line for line in told if line.startswith("left out")]
    assert len(left_out) == len(items) - len(clips) and any("left out d," in line for line in left_out)


def test_too_many_of_them_stop_the_run(tmp_path: Path) -> None:
    items = dataset(tmp_path)
    with pytest.raises(DataError, match=r"of 4 items cannot be read, more than 10%: .*d; prepare"):
        load_clips(tmp_path, items, tmp_path / "cache", 16, 24)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(DataError, match="a, "):
        load_clips(tmp_path, items, tmp_path / "again", 16, 24)
