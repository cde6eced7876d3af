"""From footage to a dataset: the same content however often, and however, it is run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from model.errors import DataError, InvalidRequest
from tests.unit.training.curation.film import small_film
from training.curation.clips_plan import ClipRules
from training.curation.pipeline import Settings, curate, reselect
from training.curation.records import ClipRecord, ScoreRecord
from training.curation.runners import RUNNERS
from training.curation.tables import read_table
from training.data.frames import load_clips
from training.data.motion_bucket import MotionMap
from training.data.shards import dataset_identity
from training.data.starter import load_items

SETTINGS = Settings(rules=ClipRules(0.5, 2.0), scorers=("picture",), captioners=("measured",))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for seed in (1, 2):
        small_film(folder / f"film-{seed}.mp4", frames=30, seed=seed)
    return folder


@pytest.fixture(scope="module")
def dataset(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "D"
    curate([films], out, SETTINGS)
    return out


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_running_again_changes_nothing_and_does_nothing(films: Path, dataset: Path) -> None:
    before = manifest(dataset)
    pieces = {path: path.stat().st_mtime_ns for path in (dataset / "parts").rglob("*.jsonl")}
    assert len(pieces) > 10
    curate([films], dataset, SETTINGS)
    assert manifest(dataset) == before
    assert {path: path.stat().st_mtime_ns for path in (dataset / "parts").rglob("*.jsonl")} == pieces


@pytest.mark.slow
def test_another_folder_gets_the_same_content(films: Path, dataset: Path, tmp_path: Path) -> None:
    outcome = curate([films], tmp_path / "E", SETTINGS)
    assert outcome.manifest["content_sha256"] == manifest(dataset)["content_sha256"]


@pytest.mark.slow
def test_other_clips_give_another_hash(films: Path, dataset: Path, tmp_path: Path) -> None:
    small = Settings(rules=ClipRules(0.5, 1.0), scorers=("picture",), captioners=("measured",))
    assert curate([films], tmp_path / "E", small).manifest["content_sha256"] != manifest(dataset)["content_sha256"]


def test_shards_tell_where_a_clip_comes_from_and_how_it_moves(dataset: Path) -> None:
    clips = {clip.clip_id: clip for clip in read_table(dataset / "clips.parquet", ClipRecord)}
    speeds = {one.clip_id: one.value for one in read_table(dataset / "scores" / "speed.parquet", ScoreRecord)}
    seen = []
    for shard in manifest(dataset)["shards"]:
        with tarfile.open(dataset / shard["file"]) as tar:
            for entry in tar:
                stream = tar.extractfile(entry)
                assert stream is not None
                if entry.name.endswith(".json"):
                    told = json.load(stream)
                    clip = clips[told["clip_id"]]
                    assert (told["source"], told["start_s"], told["byte_end"]) == (
                        clip.source,
                        clip.start_s,
                        clip.byte_end,
                    )
                    assert told["motion_bucket"] == MotionMap().bucket(speeds[clip.clip_id])
                    assert told["captions"]["measured"]
                    seen.append(told["clip_id"])
                else:
                    assert stream.read() == (dataset / clips[Path(entry.name).stem].file).read_bytes()
    assert seen == sorted(seen)
    assert len(seen) == manifest(dataset)["kept"] > 0


def test_new_thresholds_select_again_without_the_sources(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "D"
    before = curate([films], out, SETTINGS).manifest
    (out / "thresholds.toml").write_text("[sharpness]\ndrop_lowest_percent = 50\n")
    after = reselect(out)
    assert 0 < after["kept"] < before["clips"]
    assert after["content_sha256"] != before["content_sha256"]
    assert sum(shard["clips"] for shard in after["shards"]) == after["kept"]


def test_training_reads_the_shards(dataset: Path, tmp_path: Path) -> None:
    items = load_items(dataset)
    assert [item.id for item in items] == sorted(item.id for item in items)
    assert {item.split for item in items} <= {"train", "heldout"}
    loaded = load_clips(dataset, items[:2], tmp_path, 32, 32)
    assert [clip.frames.shape for clip in loaded] == [(item.num_frames, 32, 32, 3) for item in items[:2]]
    assert dataset_identity(dataset)["sha256"] == manifest(dataset)["content_sha256"]


def test_a_changed_shard_is_refused(films: Path, tmp_path: Path) -> None:
    curate([films], tmp_path / "D", SETTINGS)
    shard = next((tmp_path / "D" / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="not the shard"):
        load_items(tmp_path / "D")


def test_wrong_wishes_are_refused(films: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not exist"):
        curate([tmp_path / "nothing.mp4"], tmp_path / "D")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="no video"):
        curate([tmp_path / "empty"], tmp_path / "D")
    with pytest.raises(InvalidRequest, match="there is no 'beauty'"):
        curate([films], tmp_path / "D", Settings(scorers=("beauty",)))


def run_killed(films: Path, out: Path, runner: str, kills: int, draw: random.Random, longest_s: float) -> int:
    """Start the command, kill it `kills` times, then let it end; returns how often it was killed while it worked."""
    command = [sys.executable, "-W", "ignore", "-m", "cli", "curate", str(films), "--out", str(out), "--runner", runner]
    command += ["--score", "picture", "--caption", "measured", "--min-length", "0.5", "--max-length", "2"]
    killed = 0
    for attempt in range(kills + 1):
        process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if attempt < kills:
            # Not before it has begun to work, so that a kill meets it in the middle.
            pieces = sum(1 for _ in out.rglob("*.jsonl"))
            deadline = time.monotonic() + 60
            while sum(1 for _ in out.rglob("*.jsonl")) <= pieces and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(draw.uniform(0, longest_s))
            killed += process.poll() is None
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            process.wait()
        else:
            assert process.wait(timeout=300) == 0
    return killed


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_content(films: Path, dataset: Path, tmp_path: Path) -> None:
    assert run_killed(films, tmp_path / "D", "local", 1, random.Random(1), 0.1) == 1
    assert manifest(tmp_path / "D")["content_sha256"] == manifest(dataset)["content_sha256"]


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("runner", ["local", "ray"])
def test_three_kills_at_random_leave_the_same_content(runner: str, tmp_path: Path) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for seed in range(6):
        small_film(films / f"film-{seed}.mp4", frames=60, seed=seed)
    undisturbed = curate([films], tmp_path / "A", SETTINGS).manifest
    assert run_killed(films, tmp_path / "B", runner, 3, random.Random(7), 3.0) >= 1
    assert manifest(tmp_path / "B")["content_sha256"] == undisturbed["content_sha256"]


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_ray_gives_the_same_content_as_one_process(films: Path, dataset: Path, tmp_path: Path) -> None:
    curate([films], tmp_path / "D", SETTINGS, RUNNERS["ray"]())
    assert manifest(tmp_path / "D")["content_sha256"] == manifest(dataset)["content_sha256"]
