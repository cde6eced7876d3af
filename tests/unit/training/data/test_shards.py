"""Which clips are held out; reading shards is tested with the pipeline that writes them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import DataError
from training.data.held_out import BLOCK_S, clip_split, film_spans
from training.data.shards import dataset_identity, is_curated, open_member
from training.data.sources import FILM_SHA256
from training.data.split import CREDITS_START_S, SHOT_STRIDE, Span


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
