"""curation_gain's parts: pieces that cross cuts and avoid what is held out, the best clips, paired differences."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import curation_gain, curation_gain_figures
from model.media.video import encode_video
from training.curation.filter import Scores
from training.data.starter import load_items


@pytest.fixture
def film(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (50, 64, 112, 3), np.uint8)
    path = tmp_path / "film.mp4"
    path.write_bytes(encode_video(frames, 24, "mp4"))
    return path


@pytest.mark.slow
def test_a_film_as_it_is_comes_in_pieces_without_what_is_held_out(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curation_gain, "PIECE_S", 0.5)
    monkeypatch.setattr(
        curation_gain, "clip_split", lambda _, start, end: "heldout" if start <= 0.6 < end else "credits"
    )
    curation_gain.write_as_is(tmp_path / "D", film)
    items = load_items(tmp_path / "D")
    assert [(item.start_s, item.num_frames, item.split) for item in items] == [
        (0.0, 12, "train"),
        (1.0, 12, "train"),
        (1.5, 12, "train"),
    ]
    assert all((tmp_path / "D" / item.file).exists() for item in items)


def test_the_best_clips_rank_high_on_every_axis() -> None:
    values = {axis: np.array([0.1, 0.9, 0.5, 0.8]) for axis in curation_gain.AXES}
    scores = Scores(("a", "b", "c", "d"), values)
    assert curation_gain.best(scores, frozenset("acd"), 2) == ["c", "d"]


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(1)
    names = [name for pair in curation_gain_figures.COMPARED for name in pair]
    shots = [f"shot-{k // 2}" for k in range(12)]
    hard = rng.normal(5, 3, 12)  # some clips are much harder than others, on every side
    losses = {name: hard + 0.1 * ("curated" in name) for name in names}
    described = {name: rng.normal(0, 1, (12, 20)) for name in (*names, "real")}
    found = curation_gain_figures._figures(losses, described, shots)
    gap = found["between"]["curated minus as-is"]["loss"]
    assert gap["mean"] == pytest.approx(0.1)
    assert gap["interval"] == pytest.approx((0.1, 0.1))
    assert found["sides"]["as-is"]["loss"]["interval"][1] - found["sides"]["as-is"]["loss"]["interval"][0] > 1
    told = curation_gain_figures.table(found | {"iterations": 3, "finetuning": 2, "training_clips": {}})
    assert "+0.1" not in told
    assert "| curated minus as-is | 0.1000 [0.1000, 0.1000] |" in told


def test_the_sheet_has_a_row_for_each_side() -> None:
    clip = np.zeros((14, 32, 56, 3), np.uint8)
    sheet = curation_gain_figures.sheet({"real": [clip] * 3, "curated": [clip] * 3})
    with Image.open(io.BytesIO(sheet)) as read:
        assert read.format == "PNG"
        assert read.width > 4 * 56
