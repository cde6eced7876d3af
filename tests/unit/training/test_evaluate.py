"""A whole evaluation, of a random tiny checkpoint on a dataset made on the spot: complete, resumable, JSON."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.catalog import SIDECAR, ModelEntry
from model.errors import DataError, InvalidRequest
from model.media.video import encode_video
from model.presets import preset
from model.tasks import TASKS
from model.testing import build_random
from tests.unit.training.metrics.test_fvd import SmallI3D, scripted
from tests.unit.training.support import moving_square
from training.data.motion_bucket import MotionMap
from training.data.starter import Item
from training.evaluate import EvalSettings, evaluate, motion_map
from training.metrics.figures import BUCKETS, distances, obedience
from training.metrics.inputs import choose


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return build_random(tmp_path_factory.mktemp("checkpoint"), preset("tiny"), TASKS["image-to-video"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two held-out shots, one in training, and a held-out photograph."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "shots").mkdir()
    (folder / "photos").mkdir()
    items = []
    for index, split in enumerate(("heldout", "train", "heldout")):
        clip = moving_square(f"shot-{index}", frames=30, speed=index + 1, seed=index)
        items.append(replace(clip.item, file=f"shots/{index}.mp4", split=split))
        (folder / items[-1].file).write_bytes(encode_video(clip.frames, 24, "mp4"))
    items.append(Item("photo", "photo", "photos/one.png", "source-photo", 0, 0, 1, 0.0, "heldout"))
    Image.fromarray(moving_square("any", frames=1, seed=9).frames[0]).save(folder / items[-1].file)
    lines = "".join(json.dumps(asdict(item)) + "\n" for item in items)
    (folder / "items.jsonl").write_text(lines)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({"items_sha256": digest}))
    return folder


def plain_features(clip: np.ndarray) -> np.ndarray:
    """A feature that takes no weights: every frame's mean colour, and how fast it changes."""
    colour = clip.astype(np.float64).mean(axis=(1, 2))
    return np.concatenate([colour.ravel(), np.abs(np.diff(clip.astype(np.float64), axis=0)).mean(axis=(1, 2, 3))])


def run(entry: ModelEntry, dataset: Path, work: Path, limit: int | None = None) -> dict[str, Any]:
    return evaluate(entry, dataset, limit, settings=EvalSettings(steps=2, features=plain_features, work=work))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def result(entry: ModelEntry, dataset: Path, work: Path) -> dict[str, Any]:
    """Of two clips: with more each figure is nearer, and none is another."""
    return run(entry, dataset, work, limit=2)


@pytest.mark.slow
def test_every_figure_is_there_beside_its_baselines(result: dict[str, Any]) -> None:
    figures = result["figures"]
    assert set(figures) == set(result["protocol"])
    assert {"clips", "clips_shrunk_and_back", "photographs"} <= set(figures["reconstruction_psnr_db"])
    assert {"model", "still", "slow_zoom", "autoencoder", "model_interval", "beats_both"} <= set(figures["frechet"])
    assert figures["motion"]["inputs"] == 2
    assert set(figures["motion"]["model"]) == {"20", "80", "160", "240"}
    assert {"model", "real", "still", "slow_zoom"} <= set(figures["sharpness_kept"])


@pytest.mark.slow
def test_the_answer_is_plain_json(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result, allow_nan=False))["figures"].keys() == result["figures"].keys()


@pytest.mark.slow
def test_a_random_model_does_not_beat_the_still(result: dict[str, Any]) -> None:
    frechet = result["figures"]["frechet"]
    assert not frechet["beats_both"]
    assert frechet["model"] > frechet["still"]
    assert frechet["model_minus_still_interval"][0] > 0


@pytest.mark.slow
def test_only_held_out_shots_are_used(result: dict[str, Any], work: Path) -> None:
    assert result["settings"]["limit"] == 2
    assert {path.parent.parent.name for path in work.rglob("paired/*/*/*.npy")} == {"shot-0", "shot-2"}


@pytest.mark.full
def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    entry: ModelEntry, dataset: Path, tmp_path: Path, result: dict[str, Any]
) -> None:
    class Interrupt(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise Interrupt

    settings = EvalSettings(steps=2, features=plain_features, work=tmp_path)
    with pytest.raises(Interrupt):
        evaluate(entry, dataset, 2, stop, settings)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert len(kept) == 3
    assert run(entry, dataset, tmp_path, limit=2)["figures"] == result["figures"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.full
def test_several_clips_a_call_are_the_same_clips(entry: ModelEntry, dataset: Path, tmp_path: Path) -> None:
    for batch in (1, 3):
        settings = EvalSettings(steps=2, batch=batch, features=plain_features, work=tmp_path / str(batch))
        evaluate(entry, dataset, 3, settings=settings)
    for path in (tmp_path / "1").rglob("*.npy"):
        other = np.load(tmp_path / "3" / path.relative_to(tmp_path / "1"))
        assert np.abs(np.load(path).astype(int) - other).max() <= 1


def test_a_dataset_is_asked_for_and_so_are_two_inputs(entry: ModelEntry, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stillmotion data starter"):
        run(entry, tmp_path, tmp_path)
    with pytest.raises(InvalidRequest, match="at least 2"):
        run(entry, dataset, tmp_path, limit=1)


def test_the_checkpoint_s_own_motion_map_counts(entry: ModelEntry, tmp_path: Path) -> None:
    assert motion_map(entry) == MotionMap()
    own = MotionMap(reference_flow=0.1)
    (tmp_path / SIDECAR).write_text(json.dumps({"motion_map": asdict(own)}))
    assert motion_map(replace(entry, path=tmp_path)) == own


def test_clips_go_round_the_shots_and_do_not_repeat() -> None:
    shots = [Item(f"s{n}", "shot", "", "", 0, 0, frames, 24.0, "heldout") for n, frames in enumerate((29, 60, 180))]
    chosen = choose(shots, 14, 64)
    assert [item.id for item, _, _ in chosen[:3]] == ["s0", "s1", "s2"]
    assert len({(item.id, stride, start) for item, stride, start in chosen}) == len(chosen)
    for item, stride, start in chosen:
        assert 0 <= start <= item.num_frames - (13 * stride + 1)
    assert {stride for item, stride, _ in chosen if item.id == "s2"} == {2, 3, 4}
    with pytest.raises(DataError, match="long enough"):
        choose(shots[:1], 40, 64)


def test_obedience_of_a_perfect_and_of_a_deaf_model() -> None:
    motion = MotionMap()
    perfect = np.array([[scale * motion.flow(bucket) for bucket in BUCKETS] for scale in (0.9, 1.0, 1.1)])
    assert obedience(perfect, motion)["spearman"] > 0.9
    assert obedience(perfect, motion)["increasing"]
    deaf = obedience(np.ones((3, 4)), motion)
    assert (deaf["spearman"], deaf["increasing"]) == (0.0, False)


def test_the_nearer_side_has_the_smaller_distance() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(60, 100))
    noise = rng.normal(size=(60, 100))
    sides = {"real": real, "model": real + 0.2 * noise, "still": real + 1.0 * noise, "slow_zoom": real * 0.2}
    figure = distances(sides, [f"shot-{n // 4}" for n in range(60)])
    assert figure["beats_both"]
    assert figure["model_minus_still_interval"][1] < 0
    assert figure["model_minus_slow_zoom_interval"][1] < 0
    assert (figure["clips"], figure["shots"]) == (60, 15)


@pytest.mark.full
def test_fvd_stands_beside_the_others_where_i3d_is_given(tmp_path: Path, dataset: Path) -> None:
    entry = build_random(tmp_path / "c", preset("tiny"), TASKS["image-to-video"], num_frames=9)
    weights = scripted(SmallI3D(), tmp_path / "i3d.pt")
    settings = EvalSettings(steps=1, features=plain_features, i3d=weights, work=tmp_path, page=tmp_path / "page")
    found = evaluate(entry, dataset, 2, settings=settings)
    assert set(found["figures"]) == set(found["protocol"])
    assert {"model", "still", "slow zoom", "autoencoder"} <= found["figures"]["fvd"].keys()
    sides = {path.stem.split("-", 1)[1] for path in (tmp_path / "page" / "clips").iterdir()}
    assert sides == {"real", "model", "still", "slow-zoom", "autoencoder"}


def test_fvd_is_refused_where_it_is_no_figure(tmp_path: Path, dataset: Path) -> None:
    views = build_random(tmp_path / "c", preset("tiny"), TASKS["multi-view"], num_frames=5)
    with pytest.raises(InvalidRequest, match="not of multi-view"):
        evaluate(views, dataset, 2, settings=EvalSettings(i3d=tmp_path / "i3d.pt", work=tmp_path))
