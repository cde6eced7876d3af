"""Clips that cannot be read are counted, named and left out, up to a stated share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from model.errors import DataError
from model.media.video import encode_video
from training.data.excluded_clips import ExcludedClips
from training.data.frames import load_clips, load_sized, readable_photos, shown_size
from training.data.starter import Item


def dataset(folder: Path) -> list[Item]:
    """Five shots: the third is cut short, the fourth is no video, the fifth lacks frames that its item names."""
    frames = np.random.default_rng(0).integers(0, 255, (6, 32, 48, 3), dtype=np.uint8)
    whole = encode_video(frames, 24, "mp4")
    item = Item("a", "shot", "a.mp4", "film", 0, 1, 6, 24.0, "train")
    contents = {"a": whole, "b": whole, "c": whole[: len(whole) // 2], "d": b"no video at all", "e": whole}
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    told = {"e": 9}
    return [dataclasses.replace(item, id=name, file=f"{name}.mp4", num_frames=told.get(name, 6)) for name in contents]


def test_unreadable_clips_are_reported_by_name_and_left_out(tmp_path: Path) -> None:
    told: list[str] = []
    items = dataset(tmp_path)
    excluded = ExcludedClips(lambda what, *_: told.append(what), 0.7)
    clips = load_clips(tmp_path, items, tmp_path / "cache", 16, 24, excluded=excluded)
    assert [clip.item.id for clip in clips] == ["a", "b"]
    assert list(excluded.unreadable) == ["c", "d", "e"] and excluded.lost == 3
    assert [line.partition(",")[0] for line in told] == ["left out c", "left out d", "left out e"]
    assert "only 6 of its 9 frames" in excluded.unreadable["e"]
    assert excluded.record()["unreadable_clips"] == 3


def test_too_many_of_them_stop_the_run(tmp_path: Path) -> None:
    items = dataset(tmp_path)
    with pytest.raises(DataError, match=r"3 of 5 items cannot be read, more than 10%: c, d, e; .*most_unreadable"):
        load_clips(tmp_path, items, tmp_path / "cache", 16, 24)
    load_clips(tmp_path, items, tmp_path / "cache", 16, 24, excluded=ExcludedClips(most=0.6))
    with pytest.raises(DataError, match="more than 59%"):
        load_clips(tmp_path, items, tmp_path / "cache", 16, 24, excluded=ExcludedClips(most=0.59))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(DataError, match="a, "):
        load_clips(tmp_path, items, tmp_path / "again", 16, 24)


def test_a_full_disk_is_no_broken_clip(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a-16x24.partial").mkdir()  # writing there fails
    with pytest.raises(IsADirectoryError):
        load_clips(tmp_path, dataset(tmp_path)[:1], tmp_path / "cache", 16, 24)


def test_each_item_is_read_at_its_own_size(tmp_path: Path) -> None:
    items = dataset(tmp_path)[:2]
    assert shown_size(tmp_path, items[0]) == (32, 48)
    sizes = {"a": (16, 24), "b": (32, 16)}
    clips = load_sized(tmp_path, items, tmp_path / "cache", lambda item: sizes[item.id])
    assert [clip.frames.shape for clip in clips] == [(6, 16, 24, 3), (6, 32, 16, 3)]


def test_a_broken_photograph_is_left_out(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48), "red").save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    photo = Item("whole", "photo", "whole.png", "x", 0, 0, 1, 0.0, "train")
    excluded = ExcludedClips(most=0.5)
    items = [photo, dataclasses.replace(photo, id="half", file="half.png")]
    assert readable_photos(tmp_path, items, excluded) == [photo]
    assert list(excluded.unreadable) == ["half"]
    assert shown_size(tmp_path, photo) == (48, 64)
