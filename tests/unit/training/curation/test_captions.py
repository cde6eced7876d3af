"""Captioners: tiny random models of the same architectures run for real; without weights nothing is invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import DataError
from tests.unit.training.curation.clip_support import (
    clip_of,
    pan,
    textured,
    write_language_model,
    write_video_captioner,
)
from training.curation.captions import CAPTIONERS
from training.curation.captions.choice import choose_caption
from training.curation.captions.measured import camera_phrase
from training.curation.records import CaptionRecord


def said(captioner: str, text: str | None) -> CaptionRecord:
    return CaptionRecord("c", captioner, text, None if text else "not captioned", "t", "")


BOTH = [said("measured", "a dark film frame"), said("coca", "a rabbit"), said("video", "it sleeps")]


@pytest.mark.parametrize("name", ["coca", "video", "vision", "merge"])
def test_without_weights_nothing_is_invented(tmp_path: Path, name: str) -> None:
    clip = clip_of(tmp_path, pan(4))
    (record,) = CAPTIONERS[name]({}).caption([clip], [BOTH])
    assert record.text is None
    assert (record.reason or "").startswith("not captioned: no ")
    assert record.captioner == name


def test_measured_captions_stand_under_their_own_name(tmp_path: Path) -> None:
    (record,) = CAPTIONERS["measured"]({}).caption([clip_of(tmp_path, pan(16))], [[]])
    assert record.captioner == "measured"
    assert record.text is not None and record.text.endswith("; the camera pans left")


@pytest.mark.parametrize(
    ("shift", "told"),
    [((0, -2), "the camera pans right"), ((2, 0), "the camera tilts up"), ((-2, 0), "the camera tilts down")],
)
def test_the_camera_goes_the_other_way_than_the_picture(shift: tuple[int, int], told: str) -> None:
    picture = textured()
    frames = np.stack([np.roll(picture, (shift[0] * t, shift[1] * t), axis=(0, 1)) for t in range(5)])
    assert camera_phrase(frames, 2.0) in (told, f"{told} slowly")


def test_a_zoom_in_and_a_still_are_told() -> None:
    from PIL import Image

    picture = Image.fromarray(textured())
    boxes = [(2.0 * t, 1.0 * t, 192 - 2.0 * t, 96 - 1.0 * t) for t in range(5)]
    zoom = np.stack([np.asarray(picture.resize((192, 96), box=box)) for box in boxes])
    assert camera_phrase(zoom, 2.0).startswith("the camera moves in")
    assert camera_phrase(zoom[::-1], 2.0).startswith("the camera moves out")
    assert camera_phrase(np.repeat(zoom[:1], 4, 0), 2.0) == "nothing moves"


def test_a_video_captioner_of_the_published_architecture_runs(tmp_path: Path) -> None:
    weights = write_video_captioner(tmp_path / "weights")
    clips = [clip_of(tmp_path, pan(16, seed=seed), f"{seed}" * 20) for seed in range(3)]
    captioner = CAPTIONERS["video"]({"weights": str(weights), "prompt": "Describe the video"})
    records = captioner.caption(clips, [[], [], []])
    assert [record.clip_id for record in records] == [clip.clip_id for clip in clips]
    assert all((record.text is None) == (record.reason is not None) for record in records)
    assert any(record.text for record in records)
    assert all(len(record.weights_sha256) == 64 for record in records)
    alone = captioner.caption(clips[1:2], [[]])[0]
    assert alone == records[1]


def test_a_local_language_model_runs(tmp_path: Path) -> None:
    captioner = CAPTIONERS["merge"]({"weights": str(write_language_model(tmp_path / "weights"))})
    clip = clip_of(tmp_path, pan(4))
    (record,) = captioner.caption([clip], [BOTH])
    assert record.text is not None
    assert captioner.caption([clip], [BOTH]) == [record]
    assert len(record.weights_sha256) == 64


@pytest.mark.parametrize("name", ["video", "merge"])
def test_weights_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        CAPTIONERS[name]({"weights": str(tmp_path)})


def texts(captions: list[CaptionRecord]) -> dict[str, str]:
    """As a shard's JSON holds them."""
    return {one.captioner: one.text for one in captions if one.text is not None}


def test_training_reads_half_coca_and_a_quarter_each_of_the_others() -> None:
    captions = texts([*BOTH, said("merge", "a rabbit sleeps")])
    drawn = [choose_caption(captions, draw) for draw in np.linspace(0, 1, 1000, endpoint=False)]
    assert [drawn.count(text) for text in ("a rabbit", "it sleeps", "a rabbit sleeps")] == [500, 250, 250]


@settings(max_examples=30)
@given(st.floats(0, 1, exclude_max=True), st.permutations(BOTH))
def test_a_missing_captioner_leaves_the_draw_and_order_does_not_matter(draw: float, order: list[CaptionRecord]) -> None:
    assert (
        choose_caption(texts(order), draw)
        == choose_caption(texts(BOTH), draw)
        == ("a rabbit" if draw < 2 / 3 else "it sleeps")
    )


@settings(max_examples=30)
@given(st.floats(0, 1, exclude_max=True))
def test_measured_is_read_where_nobody_said_anything(draw: float) -> None:
    assert choose_caption(texts([BOTH[0], said("coca", None)]), draw) == "a dark film frame"
    assert choose_caption({}, draw) is None
