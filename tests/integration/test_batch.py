"""`stillmotion batch` on Ray: the API's frames, killed anywhere; bad rows; S3; and as a piece of a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from model.catalog import ModelEntry
from model.media.video import probe
from serving.engine.settings import EngineSettings
from serving.offline.manifest import Portion
from serving.offline.run import Batch
from serving.offline.survey import Fault, survey
from tests.conftest import ROOT
from tests.integration.batch_support import (
    QUIET,
    Command,
    build_models,
    complete,
    draw_stills,
    mixed_rows,
    over_the_api,
    records,
    results,
    write_jsonl,
)
from tests.unit.serving.offline.s3_support import environment, s3_server
from tests.unit.serving.offline.support import BAD_ROWS, stills, write_bad_manifest

pytest.importorskip("ray", reason="needs the [batch] extra")
pytestmark = pytest.mark.timeout(900)  # seconds on a quiet machine


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[ModelEntry]:
    return build_models(tmp_path_factory.mktemp("models"))


def command(entries: list[ModelEntry], manifest: Path | str, out: Path | str, folder: Path, *more: str) -> Command:
    models = [part for entry in entries for part in ("--model", str(entry.path))]
    return Command([str(manifest), "--out", str(out), "--deterministic", *models, *more], folder / "log.txt")


async def survive(entries: list[ModelEntry], folder: Path, *, rows: int, steps: int, driver_kills: int) -> None:
    """Kill the driver so often and a worker once; compare what is there in the end with what the API makes."""
    draw_stills(folder)
    asked = mixed_rows(rows, steps)
    out, manifest = folder / "out", write_jsonl(folder / "manifest.jsonl", asked)
    batch = command(entries, manifest, out, folder)
    before = records(out)
    for kill in range(1, driver_kills + 1):
        batch.start()
        batch.until(lambda wanted=kill * rows // (driver_kills + 2): complete(out) >= wanted)
        batch.kill()
        now = records(out)
        assert before.items() <= now.items(), "a row was done again"
        assert 0 < len(now) < rows
        before = now
    batch.start()
    batch.until(lambda: complete(out) > len(before))
    batch.kill_worker()
    assert batch.wait() == 0, batch.log.read_text()

    after = records(out)
    assert before.items() <= after.items(), "a row was done again"
    made = results(out)
    assert [(one.row, one.id, one.status) for one in made] == [
        (n, f"shot-{n}", "completed") for n in range(1, rows + 1)
    ]
    expected = await over_the_api(entries, [(row, one.seed) for row, one in zip(asked, made, strict=True)], folder)
    assert [one.frames_sha256 for one in made] == expected
    assert len({*expected}) == rows
    for one in made:
        told = probe(out / one.video)
        assert (told.frames, told.width) == (one.num_frames, one.width)
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        *("attempts", "index.html", "records", "results.jsonl", "results.parquet", "thumbnails", "videos")
    ]
    batch.run(expected=0)
    assert records(out) == after


@pytest.mark.full
async def test_rows_become_the_videos_of_the_api(tmp_path: Path) -> None:
    entries = build_models(tmp_path / "models", "image-to-video")
    draw_stills(tmp_path)
    asked = [row for row in mixed_rows(8, 2) if "task" not in row][:3]
    out, manifest = tmp_path / "out", write_jsonl(tmp_path / "manifest.jsonl", [*asked, {**asked[0], "fps": 1000}])
    command(entries, manifest, out, tmp_path).run(expected=1)
    made = results(out)
    assert [(one.row, one.status, one.error_column) for one in made] == [
        *((number, "completed", "") for number in (1, 2, 3)),
        (4, "failed", "fps"),
    ]
    expected = await over_the_api(
        entries, [(row, one.seed) for row, one in zip(asked, made[:3], strict=True)], tmp_path
    )
    assert [one.frames_sha256 for one in made[:3]] == expected
    assert [probe(out / one.video).frames for one in made[:3]] == [one.num_frames for one in made[:3]]
    assert "3 videos, 1 failed" in (out / "index.html").read_text()


@pytest.mark.full
async def test_killed_and_resumed_it_makes_the_frames_of_the_api(entries: list[ModelEntry], tmp_path: Path) -> None:
    await survive(entries, tmp_path, rows=10, steps=8, driver_kills=1)


@pytest.mark.full
@pytest.mark.timeout(3600)
async def test_sixty_rows_survive_two_kills_of_the_driver_and_one_of_a_worker(
    entries: list[ModelEntry], tmp_path: Path
) -> None:
    await survive(entries, tmp_path, rows=60, steps=8, driver_kills=2)


@pytest.mark.full
def test_bad_rows_are_named_in_a_dry_run_and_recorded_in_a_real_one(entries: list[ModelEntry], tmp_path: Path) -> None:
    stills(tmp_path)
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "out"
    rows = write_bad_manifest(manifest)
    faults: list[Fault] = []
    asked = Batch(
        manifest=str(manifest),
        out=str(out),
        entries=tuple(entries),
        settings=EngineSettings(device="cpu"),
        portion=Portion(),
    )
    found = survey(asked, faults.append, lambda *_: None)
    assert (found.rows, found.complete, found.faulty) == (rows, 0, len(BAD_ROWS))
    assert found.estimate_s is not None
    assert found.estimate_s > 0
    assert [(fault.row, fault.column) for fault in faults] == [
        (number, column) for number, (_, column) in enumerate(BAD_ROWS, 2)
    ]
    assert not (out / "videos").exists()

    command(entries, manifest, out, tmp_path, "--retries", "0").run(expected=1)
    made = results(out)
    assert [one.row for one in made] == list(range(1, rows + 1))
    assert [one.row for one in made if one.status == "completed"] == [1, rows]
    assert [(one.row, one.error_column) for one in made[1:-1]] == [(fault.row, fault.column) for fault in faults]
    assert [one.error_code for one in made[1:-1]] == [fault.code for fault in faults]
    assert len(list((out / "failures").iterdir())) == len(BAD_ROWS)
    page = (out / "index.html").read_text()
    assert "2 videos" in page
    assert page.count('class="failed"') == len(BAD_ROWS)
    done = survey(asked, lambda _: None, lambda *_: None)
    assert (done.complete, done.faulty, done.estimate_s) == (2, len(BAD_ROWS), 0.0)


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[str]:
    with s3_server(tmp_path) as url:
        yield url


@pytest.mark.full
def test_input_and_output_on_s3(entries: list[ModelEntry], s3: str, tmp_path: Path) -> None:
    draw_stills(tmp_path)
    rows = [
        {"image": "stills/0.jpg", "num_inference_steps": 2, "seed": 1, "id": "a"},
        {"image": "s3://films/in/stills/1.jpg", "num_inference_steps": 2, "seed": 2, "id": "b"},
        {"image": "stills/none.jpg", "num_inference_steps": 2, "id": "c"},
    ]
    manifest = write_jsonl(tmp_path / "manifest.jsonl", rows)
    for name, path in [("manifest.jsonl", manifest), *((f"stills/{n}.jpg", tmp_path / f"{n}.jpg") for n in (0, 1))]:
        httpx2.put(f"{s3}/films/in/{name}", content=path.read_bytes()).raise_for_status()
    batch = command(entries[:1], "s3://films/in/manifest.jsonl", "s3://films/out", tmp_path)
    batch.environment = environment(s3)
    batch.run(expected=1)

    bucket = private(s3)

    def read(name: str) -> bytes:
        return bytes(bucket.cat_file(f"films/out/{name}"))

    def stamps() -> list[datetime]:
        return [bucket.info(f"films/out/records/{name}.json")["LastModified"] for name in "ab"]

    made = [json.loads(line) for line in read("results.jsonl").splitlines()]
    assert [(one["id"], one["status"], one["error_code"]) for one in made] == [
        ("a", "completed", ""),
        ("b", "completed", ""),
        ("c", "failed", "picture_not_found"),
    ]
    for one in made[:2]:
        assert probe(read(one["video"])).frames == one["num_frames"]
        assert read(one["thumbnail"]).startswith(b"\xff\xd8")
    assert "2 videos, 1 failed" in read("index.html").decode()
    before = stamps()
    httpx2.put(f"{s3}/films/in/stills/none.jpg", content=(tmp_path / "2.jpg").read_bytes()).raise_for_status()
    batch.run(expected=0)  # the picture is there now: only the row that failed is rendered
    assert stamps() == before
    assert bucket.exists("films/out/records/c.json")
    assert not bucket.exists("films/out/failures/c.json")


def private(url: str) -> Any:
    """The endpoint as its owner sees it: what a run writes is nobody else's."""
    import s3fs

    told = environment(url)
    return s3fs.S3FileSystem(
        key=told["AWS_ACCESS_KEY_ID"],
        secret=told["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=url,
        client_kwargs={"region_name": told["AWS_DEFAULT_REGION"]},
        use_listings_cache=False,
        skip_instance_cache=True,
    )


PROGRAM = """
import json, sys
import ray
from model.sources.source import find
from serving.offline import render
from serving.engine.settings import EngineSettings

folder, out, model = sys.argv[1:]
ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False)
rows = [
    {"image": open(f"{folder}/0.jpg", "rb").read(), "seed": 3, "num_inference_steps": 2, "id": "bytes"},
    {"image": open(f"{folder}/0.jpg", "rb").read(), "seed": None, "num_inference_steps": 500, "id": "bad"},
]
dataset = render(ray.data.from_items(rows), out, models=[find(model)], settings=EngineSettings(device="cpu"))
told = {row["id"]: [row["status"], row["frames_sha256"], row["error_column"]] for row in dataset.take_all()}
print("RESULT", json.dumps(told))
ray.shutdown()
"""


@pytest.mark.full
def test_a_ray_dataset_of_rows_becomes_one_of_results(entries: list[ModelEntry], tmp_path: Path) -> None:
    draw_stills(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "out"), str(entries[0].path)],
        cwd=ROOT,
        env={**os.environ, **QUIET},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(
        next(line for line in done.stdout.splitlines() if line.startswith("RESULT")).removeprefix("RESULT")
    )
    assert told["bad"] == ["failed", "", "num_inference_steps"]
    assert told["bytes"][0] == "completed"
    assert (tmp_path / "out/videos/bytes.mp4").exists()


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_million_rows_begin_within_a_minute_and_hold_no_more_memory(
    entries: list[ModelEntry], tmp_path: Path
) -> None:
    draw_stills(tmp_path)
    manifest, out = tmp_path / "manifest.jsonl", tmp_path / "out"
    with manifest.open("w") as file:
        file.writelines(
            f'{{"image": "{seed % 3}.jpg", "seed": {seed}, "num_inference_steps": 1}}\n' for seed in range(1_000_000)
        )
    batch = command(entries[:1], manifest, out, tmp_path)
    began = time.monotonic()
    batch.start()
    batch.until(lambda: complete(out) > 0)
    first_s = time.monotonic() - began
    assert batch.process is not None
    family = psutil.Process(batch.process.pid)

    def megabytes() -> float:
        return sum(one.memory_full_info().uss for one in (family, *family.children(recursive=True))) / 1e6

    batch.until(lambda: complete(out) > 100)
    before, rows_before = megabytes(), complete(out)
    batch.until(lambda: complete(out) > rows_before + 400)
    after, rows_after = megabytes(), complete(out)
    batch.kill()
    print(
        f"first video after {first_s:.1f} s; {before:.0f} MB after {rows_before} rows, {after:.0f} after {rows_after}"
    )
    assert first_s < 60
    assert after < before + 100
