"""Each scorer on clips whose answer is known, and what it says where it has no weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from model.errors import DataError, InvalidRequest
from tests.unit.training.curation.clip_support import clip_of, pan, textured, write_clip_model
from training.curation.frames import ClipFrames
from training.curation.inputs import square_pixels
from training.curation.records import CaptionRecord, ScoreRecord
from training.curation.scores import CAPTION_SCORERS, DATASET_SCORERS, SCORERS
from training.curation.scores.embedding import nearest_earlier
from training.curation.scores.motion import affine_part, stored_maps
from training.curation.scores.picture import black_border, colourfulness
from training.curation.scores.text import covered
from training.data.motion_bucket import measure_flow


def values(records: list[ScoreRecord]) -> dict[str, float | None]:
    assert all((record.value is None) == (record.reason is not None) for record in records)
    return {record.name: record.value for record in records}


def scored(name: str, clip: ClipFrames, **options: str) -> dict[str, float | None]:
    return values(SCORERS[name](options).score(clip))


def test_a_pan_is_the_camera_alone_and_moves_as_fast_as_it_does(tmp_path: Path) -> None:
    got = scored("motion", clip_of(tmp_path, pan(pixels=1)))
    # 8 pixels a second in 96 lines.
    assert got["flow_mean"] == pytest.approx(8 / 96, rel=0.15)
    assert got["static_share"] == 0
    assert got["camera_share"] == 1


def test_the_stored_maps_keep_the_mean_flow() -> None:
    frames = pan(frames=9, pixels=2)[::4]
    maps = list(stored_maps(frames, 2.0))
    assert [one.shape for one in maps] == [(16, 32, 2)] * 2
    mean = float(np.mean([np.hypot(one[..., 0], one[..., 1]).mean() for one in maps]))
    assert mean == pytest.approx(measure_flow(frames, 2.0), rel=0.05)


def test_a_still_is_static(tmp_path: Path) -> None:
    got = scored("motion", clip_of(tmp_path, np.repeat(textured()[None], 24, axis=0)))
    assert got["flow_mean"] is not None and got["flow_mean"] < 0.003
    assert got["static_share"] == 1
    assert got["camera_share"] is None


def test_something_that_moves_by_itself_is_not_the_camera(tmp_path: Path) -> None:
    frames = np.repeat(textured()[None], 24, axis=0)
    for t in range(24):
        frames[t, 30:70, 20 + 4 * t : 60 + 4 * t] = textured(40, 40, seed=3)
    got = scored("motion", clip_of(tmp_path, frames))
    assert got["static_share"] == 0
    assert got["camera_share"] == 0


def test_a_zoom_is_found_whole_under_a_few_outliers() -> None:
    y, x = np.mgrid[0:16, 0:28].astype(np.float32)
    zoom = np.stack([0.02 * (x - 13.5), 0.02 * (y - 7.5)], axis=-1)
    disturbed = zoom.copy()
    disturbed[2:5, 3:6] += 1.0
    assert affine_part(disturbed) == pytest.approx(zoom, abs=0.01)


def test_a_clip_of_one_frame_has_no_motion(tmp_path: Path) -> None:
    assert set(scored("motion", clip_of(tmp_path, textured()[None])).values()) == {None}


def test_pictures_are_told_apart(tmp_path: Path) -> None:
    sharp = np.random.default_rng(0).integers(0, 255, (96, 192, 3), np.uint8)
    got = scored("picture", clip_of(tmp_path, np.repeat(sharp[None], 6, 0)))
    soft = scored("picture", clip_of(tmp_path, np.repeat(textured()[None], 6, 0), "1" * 20))
    assert got["sharpness"] > 20 * soft["sharpness"]
    assert soft["brightness"] == pytest.approx(textured().mean() / 255, abs=0.03)


def test_black_bars_count_by_their_area() -> None:
    frames = np.repeat(textured()[None], 3, axis=0)
    frames[:, :12] = 0
    frames[:, -12:] = 2
    assert black_border(frames) == pytest.approx(24 / 96)
    frames[1, 5] = 200
    assert black_border(frames) == pytest.approx((24 - 7) / 96)
    assert black_border(np.zeros((3, 8, 8, 3), np.uint8)) == 0


def test_grey_has_no_colour_and_halves_of_red_and_blue_have_much() -> None:
    grey = np.repeat(textured()[..., :1], 3, axis=-1)
    halves = np.zeros((20, 20, 3), np.uint8)
    halves[:10, :, 0] = halves[10:, :, 2] = 255
    assert colourfulness(grey) == 0
    assert colourfulness(halves) > 100


def test_overlapping_boxes_count_once() -> None:
    boxes = np.array([[[0, 0], [100, 0], [100, 50], [0, 50]], [[50, 0], [150, 0], [150, 50], [50, 50]]])
    assert covered(boxes, 100, 200) == pytest.approx(150 * 50 / 20000, abs=0.01)
    assert covered(np.empty((0, 4, 2)), 100, 200) == 0


@pytest.mark.slow
def test_text_is_found_where_there_is_some_and_not_where_there_is_none(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    picture = Image.fromarray(np.full((180, 320, 3), 30, np.uint8))
    ImageDraw.Draw(picture).text((40, 60), "DIRECTED BY", font=ImageFont.load_default(40), fill=(240, 240, 240))
    plain = np.repeat(textured(180, 320)[None], 3, axis=0)
    titled = plain.copy()
    titled[1] = np.asarray(picture)
    scorer = SCORERS["text"]({})
    with_text, without = (
        scorer.score(clip_of(tmp_path, frames, name))[0] for frames, name in ((titled, "a"), (plain, "b"))
    )
    assert with_text.value is not None and 0.05 < with_text.value < 0.4
    assert without.value == 0
    assert len(with_text.weights_sha256) == 64
    letter = Image.fromarray(np.full((180, 320, 3), 30, np.uint8))
    ImageDraw.Draw(letter).text((100, 0), "8", font=ImageFont.load_default(150), fill=(240, 240, 240))
    assert scorer.area(np.asarray(letter)) == 0, "one character is no text"


def test_a_copy_is_near_and_another_clip_is_not() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    vectors[2999] = vectors[5] * 2 + 1e-3
    nearest = nearest_earlier(vectors)
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = [max([0.0, *(unit[i] @ unit[:i].T)]) for i in range(0, 3000, 250)]
    assert nearest[::250] == pytest.approx(expected, abs=1e-5)
    assert nearest[2999] > 0.999
    assert nearest[0] == 0


def test_near_duplicates_need_an_embedding() -> None:
    rows = [
        ScoreRecord("b", "embedding", 1.0, None, "t", "w", (1.0, 0.0)),
        ScoreRecord("a", "embedding", 1.0, None, "t", "w", (1.0, 0.1)),
        ScoreRecord("c", "embedding", None, "no frames", "t", "w"),
    ]
    got = {record.clip_id: record for record in DATASET_SCORERS["near_duplicate"]({}).score_all(rows)}
    assert got["a"].value == 0
    assert got["b"].value == pytest.approx(1 / np.sqrt(1.01), abs=1e-5)
    assert got["c"].value is None and "embedding" in (got["c"].reason or "")


def test_without_weights_nothing_is_scored(tmp_path: Path) -> None:
    records = SCORERS["clip"]({}).score(clip_of(tmp_path, pan(4)))
    assert values(records) == {"clip_embedding": None, "aesthetic": None}
    assert all((record.reason or "").startswith("not scored") and not record.vector for record in records)
    (similarity,) = CAPTION_SCORERS["clip_similarity"]({}).score_captions(records, [])
    assert similarity.value is None


def test_clip_scores_are_those_of_each_frame_averaged(tmp_path: Path) -> None:
    weights = write_clip_model(tmp_path / "clip")
    head = {"weight": torch.randn(1, 8), "bias": torch.randn(1)}
    torch.save(head, tmp_path / "head.pth")
    clip = clip_of(tmp_path, pan(9, pixels=8))
    options = {"weights": str(weights), "aesthetic": str(tmp_path / "head.pth")}
    records = {record.name: record for record in SCORERS["clip"](options).score(clip)}

    from transformers import AutoTokenizer, CLIPModel

    reference = CLIPModel.from_pretrained(weights).eval()
    tokens = AutoTokenizer.from_pretrained(weights)(["a rabbit in the grass"], return_tensors="pt")
    with torch.inference_mode():
        out = reference(**tokens, pixel_values=square_pixels(clip.first_middle_last(), 32, crop=True))
    expected = float(torch.nn.functional.linear(out.image_embeds, **head).mean())
    assert records["aesthetic"].value == pytest.approx(expected, abs=1e-5)

    captions = [
        CaptionRecord(clip.clip_id, "measured", "a dark film frame", None, "t", ""),
        CaptionRecord(clip.clip_id, "coca", "a rabbit in the grass", None, "t", ""),
    ]
    scorer = CAPTION_SCORERS["clip_similarity"]({"weights": str(weights)})
    (similarity,) = scorer.score_captions(list(records.values()), captions)
    cosine = float((out.image_embeds @ out.text_embeds.T).mean())
    assert similarity.value == pytest.approx(cosine, abs=1e-5)
    assert similarity.weights_sha256 == records["clip_embedding"].weights_sha256 != ""
    (untold,) = scorer.score_captions(list(records.values()), captions[:1])
    assert untold.value is None
    other = CAPTION_SCORERS["clip_similarity"]({"weights": str(write_clip_model(tmp_path / "other", seed=1))})
    (mixed,) = other.score_captions(list(records.values()), captions)
    assert mixed.value is None and "other weights" in (mixed.reason or "")


def test_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CLIP"):
        SCORERS["clip"]({"weights": str(tmp_path)})
    with pytest.raises(DataError, match="aesthetic"):
        SCORERS["clip"]({"aesthetic": str(tmp_path / "none.pth")})


@pytest.mark.parametrize("name", ["motion", "picture", "clip"])
def test_a_setting_that_no_scorer_has_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="no setting"):
        SCORERS[name]({"speed": "fast"})


def test_squares_are_cropped_or_squeezed() -> None:
    frames = np.zeros((1, 32, 64, 3), np.uint8)
    frames[:, :, :16] = 255
    cropped, squeezed = (square_pixels(frames, 16, crop=crop)[0, 0] for crop in (True, False))
    assert float(cropped.max()) < 0
    assert float(squeezed[:, :3].min()) > 1
