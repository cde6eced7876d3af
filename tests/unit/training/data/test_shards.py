"""Which clips are held out; reading shards is tested with the pipeline that writes them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from training.data.excluded_clips import ExcludedClips
from training.data.shards import CURATED, dataset_identity, is_curated, open_member
from training.data.sources import FILM_SHA256
from training.data.split import BLOCK_S, CREDITS_START_S, SHOT_STRIDE, Span, clip_split, film_spans
from training.data.starter import load_items
from training.examples import training_items


def test_a_clip_that_shares_a_moment_with_a_held_out_shot_is_held_out() -> None:
    for span in film_spans():
        for start, end in ((span.start_s, span.end_s), (span.start_s - 1, span.start_s + 0.1), (span.end_s - 0.1, 600)):
            assert clip_split(FILM_SHA256, start, end) == "heldout"
        assert clip_split(FILM_SHA256, span.start_s - 0.2, span.start_s) == "train"
    assert clip_split(FILM_SHA256, CREDITS_START_S, CREDITS_START_S + 2) == "credits"
    assert all(span.start_s < CREDITS_START_S for span in film_spans())


@given(st.text("0123456789abcdef", min_size=8, max_size=8), st.floats(0, 3000), st.floats(0.5, 10))
def test_training_clips_never_share_a_block_with_held_out_ones(source: str, start: float, length: float) -> None:
    whole = [clip_split(source, block * BLOCK_S, block * BLOCK_S + 1) for block in range(60)]
    touched = whole[int(start // BLOCK_S) : int((start + length) // BLOCK_S) + 1]
    assert clip_split(source, start, start + length) == ("heldout" if "heldout" in touched else "train")


def test_about_one_minute_in_eight_is_held_out() -> None:
    splits = [clip_split(f"source-{k}", 1, 5) for k in range(2000)]
    assert 0.7 / SHOT_STRIDE < splits.count("heldout") / len(splits) < 1.4 / SHOT_STRIDE


def test_the_films_spans_are_the_starter_datasets(root: Path) -> None:
    items = root / "data" / "starter" / "items.jsonl"
    if not items.exists():
        pytest.skip("the starter dataset is not prepared here")
    told = [json.loads(line) for line in items.read_text().splitlines()]
    shots = [one for one in told if one["kind"] == "shot" and one["split"] == "heldout"]
    assert film_spans() == [Span(one["source"], one["start_s"], one["end_s"]) for one in shots]


def test_an_identity_follows_what_a_dataset_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json"):
        dataset_identity(tmp_path)
    assert not is_curated(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"name": "stillmotion-starter", "items_sha256": "a"}')
    first = dataset_identity(tmp_path)
    manifest.write_text('{"name": "stillmotion-starter", "items_sha256": "b"}')
    assert dataset_identity(tmp_path)["sha256"] != first["sha256"]
    manifest.write_text('{"name": "stillmotion-curated", "content_sha256": "c"}')
    assert dataset_identity(tmp_path) == {"name": "stillmotion-curated", "sha256": "c"}
    assert is_curated(tmp_path)


def test_a_clip_that_is_not_there_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"holds no x\.mp4"):
        open_member(tmp_path, "0.tar#x.mp4")


def curated(folder: Path, shards: dict[str, dict[str, str]], cut: str = "") -> Path:
    """A curated dataset of shards, each of clips' names and what their JSON says; `cut` is one that is cut short."""
    listed = []
    for name, clips in shards.items():
        path = folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for clip, told in clips.items():
                for file, data in ((f"{clip}.mp4", b"video"), (f"{clip}.json", told.encode())):
                    entry = tarfile.TarInfo(file)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        if name == cut:
            path.write_bytes(path.read_bytes()[:1300])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        listed.append({"file": path.name, "sha256": digest, "clips": len(clips)})
    (folder / "manifest.json").write_text(json.dumps({"name": CURATED, "shards": listed}))
    return folder


def told_of(name: str) -> str:
    clip = {"clip_id": name, "source": "s", "start_s": 0, "end_s": 1, "frames": 4, "fps": "24/1", "split": "train"}
    return json.dumps(clip)


def test_broken_shards_and_broken_json_are_counted_named_and_passed_over(tmp_path: Path) -> None:
    good = {name: told_of(name) for name in "abc"}
    shards = {"0": {**good, "d": "{", "e": '{"clip_id": "e"}'}, "1": good, "2": {"f": told_of("f")}, "3": good}
    curated(tmp_path, shards, cut="1")
    (tmp_path / "2.tar").write_bytes(b"changed since")
    (tmp_path / "3.tar").unlink()
    excluded = ExcludedClips()
    assert [item.id for item in load_items(tmp_path, excluded)] == ["a", "b", "c"]
    assert set(excluded.unreadable) == {"0.tar#d.mp4", "0.tar#e.mp4", "1.tar", "2.tar", "3.tar"}
    assert excluded.lost == 2 + 3 + 1 + 3
    with pytest.raises(DataError, match=r"9 of 12 items cannot be read, more than 10%: 0\.tar#d\.mp4, "):
        excluded.refuse_too_many(3)
    with pytest.raises(DataError, match="9 of 12"):
        training_items(tmp_path, ExcludedClips(most=0.7))
    assert len(training_items(tmp_path, ExcludedClips(most=0.75))) == 3


@pytest.mark.parametrize(
    ("broken", "cut"), [({"a": "{"}, ""), ({"a": '{"clip_id": "a"}'}, ""), ({"a": "{}", "b": "{}", "c": "{}"}, "0")]
)
def test_where_nobody_counts_a_broken_shard_is_an_error(tmp_path: Path, broken: dict[str, str], cut: str) -> None:
    curated(tmp_path, {"0": broken}, cut)
    with pytest.raises(DataError):
        load_items(tmp_path)


def test_a_broken_manifest_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    for read in (is_curated, dataset_identity):
        with pytest.raises(DataError, match="no valid JSON"):
            read(tmp_path)
