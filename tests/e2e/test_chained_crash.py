"""A server killed between and within the stages of a chained job: the video is the one it would have been."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from stillmotion import Client

from model.catalog import describe
from model.interpolation import plan_interpolation
from model.stages import NAMES, Stages, UpscaleStage, plan_extension
from serving.engine.settings import EngineSettings
from serving.interpolation.local import generate_chained, generate_stages
from tests.e2e.crash_support import (
    Server,
    build_interpolator,
    build_model,
    check_histories,
    draw_photo,
    serving,
)

pytestmark = pytest.mark.timeout(900)  # seconds on a busy machine
SEED, STEPS, PAIRS, PAIR_STEPS = 3, 4, 5, 5


@pytest.mark.full
def test_a_chained_job_survives_a_kill_in_its_second_stage(tmp_path: Path) -> None:
    still, between = build_model(tmp_path), build_interpolator(tmp_path)
    photo = draw_photo(tmp_path / "photo.jpg")
    server = Server(still, tmp_path, f"sqlite:///{tmp_path}/jobs.db", arguments=("--model", str(between)))
    with serving(server):
        with Client(server.url) as client:
            job = client.submit(photo, seed=SEED, num_inference_steps=STEPS, interpolate=True)
        kept = tmp_path / "artifacts" / job.id
        while not list(kept.glob("pair-*")):  # at least a checkpoint of one pair, of five
            time.sleep(0.005)
        server.kill()
        found = {path.name for path in kept.iterdir()}
        server.start()
        (job,) = server.until_all_ended()
        with Client(server.url) as client:
            phases = list(dict.fromkeys(event.job.phase for event in client.stream_events(job)))
            client.download_to(job, tmp_path / "video.mp4")
    assert "stage.kept" in found
    assert not any(name.startswith("video") for name in found), "it was over before it was killed"
    assert phases == ["queued", "encode", "denoise", "decode", "interpolate", "mux"]
    assert check_histories(server.database_url, {SEED: STEPS + PAIRS * PAIR_STEPS}) == 1
    assert not list(kept.glob("pair-*")), "what was kept goes when the job ends"
    assert job.output is not None, job.error
    assert job.output.frames_sha256 == undisturbed(still, between, photo)


def undisturbed(still: Path, between: Path, photo: Path) -> str:
    """The frames' hash of the same request in this process."""
    stages = describe(still), describe(between)
    params = stages[0].resolve({"num_inference_steps": STEPS}, SEED)
    chain = plan_interpolation(stages[1], params)
    exact = EngineSettings(device="cpu", deterministic=True, threads=1, warm_up=False, checkpoint_every_s=None)
    made = generate_chained(stages, params, (photo.read_bytes(),), chain, settings=(exact, exact))
    return made.completed.frames_sha256


FILES = {"generate": "checkpoint.*", "extend": "window-*", "interpolate": "pair-*", "upscale": "larger-*"}
"""What lies in a job's folder once it is in the middle of a stage."""
FRAMES = 15


@pytest.mark.full
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
@pytest.mark.parametrize("stage", FILES)
def test_a_job_of_four_stages_survives_a_kill_in_each(
    tmp_path: Path, stage: str, database: str, request: pytest.FixtureRequest
) -> None:
    still, between = build_model(tmp_path), build_interpolator(tmp_path)
    photo = draw_photo(tmp_path / "photo.jpg")
    url = f"sqlite:///{tmp_path}/jobs.db" if database == "sqlite" else request.getfixturevalue("postgres")
    server = Server(still, tmp_path, url, arguments=("--model", str(between)))
    with serving(server):
        with Client(server.url) as client:
            job = client.submit(
                photo, seed=SEED, num_inference_steps=12, num_frames=FRAMES, interpolate=True, upscale=4
            )
        kept = tmp_path / "artifacts" / job.id
        while not list(kept.glob(FILES[stage])):
            time.sleep(0.002)
        server.kill()
        found = {path.name for path in kept.iterdir()}
        server.start()
        (job,) = server.until_all_ended()
        with Client(server.url) as client:
            phases = list(dict.fromkeys(event.job.phase for event in client.stream_events(job)))
    assert not any(name.startswith("video") for name in found), "it was over before it was killed"
    assert phases == ["queued", "encode", "denoise", "decode", *NAMES, "mux"]
    assert not [path for pattern in FILES.values() for path in kept.glob(pattern)], "what was kept goes at the end"
    assert job.output is not None, job.error
    assert job.output.frames_sha256 == undisturbed_stages(still, between, photo)


def undisturbed_stages(still: Path, between: Path, photo: Path) -> str:
    """The frames' hash of the same request of four stages in this process."""
    entries = describe(still), describe(between)
    params = entries[0].resolve({"num_inference_steps": 12, "num_frames": max(entries[0].num_frames)}, SEED)
    stages = Stages(plan_extension(entries[0], params, FRAMES), plan_interpolation(entries[1], params), UpscaleStage(4))
    exact = EngineSettings(device="cpu", deterministic=True, threads=1, warm_up=False, checkpoint_every_s=None)
    made = generate_stages(
        entries[0],
        params,
        (photo.read_bytes(),),
        stages,
        {"extend": entries[0], "interpolate": entries[1]},
        settings=dict.fromkeys(("generate", *NAMES), exact),
    )
    return made.completed.frames_sha256
