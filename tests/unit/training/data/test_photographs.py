"""The photographs: every one is credited under a licence that allows it, and the dataset folder is complete."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError
from training.data import photographs
from training.data.photographs import Credit, photograph_credits, photograph_split, prepare
from training.data.starter import Item, load_items

ALLOWED = {"public domain", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-SA-4.0", "MIT"}


def test_every_photograph_is_credited_once_under_a_licence_that_allows_training() -> None:
    credits = photograph_credits()
    assert len(credits) == len({(one.package, one.file) for one in credits}) > 250
    assert {one.licence for one in credits} <= ALLOWED
    assert all(one.author and one.source for one in credits)
    attributed = [one for one in credits if one.licence.startswith("CC-BY")]
    assert all(one.author.lower() not in ("unknown", "?") for one in attributed)


def png(seed: int, side: int = 200) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side + 40, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


PICTURES = {
    "erase/resource/one.webp": png(1),
    "erase/resource/two.webp": png(2),
    "erase/resource/small.webp": png(3, 40),
}


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A starter dataset of one shot; packages of three pictures and none."""
    folder = tmp_path / "starter"
    (folder / "shots").mkdir(parents=True)
    (folder / "shots" / "a.mp4").write_bytes(b"film")
    lines = json.dumps(asdict(Item("a", "shot", "shots/a.mp4", "s", 0, 1, 24, 24.0, "train"))) + "\n"
    (folder / "items.jsonl").write_text(lines)
    manifest = {"items_sha256": hashlib.sha256(lines.encode()).hexdigest(), "split": "by rule", "sources": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))

    def gcompris(files: set[str]) -> Iterator[tuple[str, bytes]]:
        yield from ((file, PICTURES[file]) for file in sorted(files) if file in PICTURES)

    listed = [Credit("gcompris-qt-data", file, "CC0-1.0", "somebody", "somewhere") for file in PICTURES]
    monkeypatch.setattr(photographs, "photograph_credits", lambda: listed)
    monkeypatch.setattr(photographs, "_gcompris", gcompris)
    monkeypatch.setattr(photographs, "_mvtb", lambda files: iter(()))
    return folder


def test_a_folder_has_the_starters_items_and_the_photographs(starter: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    items = prepare(starter, out)
    assert [item.id for item in items] == ["a", "erase-one", "erase-two"], "one is too small to move a camera over"
    assert load_items(out) == items and (out / "shots" / "a.mp4").read_bytes() == b"film"
    assert all((out / item.file).exists() for item in items)
    assert {source["name"] for source in json.loads((out / "manifest.json").read_text())["sources"]} == {
        "gcompris-qt-data",
        "mvtb-data==1.6.1",
    }
    assert prepare(starter, out) == items, "again, it is the same"


def test_a_package_that_lacks_a_picture_is_refused(
    starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [Credit("gcompris-qt-data", "erase/resource/gone.webp", "CC0-1.0", "somebody", "somewhere")]
    monkeypatch.setattr(photographs, "photograph_credits", lambda: listed)
    with pytest.raises(DataError, match="gone"):
        prepare(starter, tmp_path / "out")


def test_pictures_are_held_out_by_their_content_alone() -> None:
    contents = [png(seed, 8) for seed in range(150)]
    splits = [photograph_split("gcompris-qt-data", content) for content in contents]
    assert splits == [photograph_split("gcompris-qt-data", content) for content in contents]
    assert 3 <= splits.count("heldout") <= 30
    assert {photograph_split("mvtb-data==1.6.1", content) for content in contents} == {"train"}
