"""Long: on the shipped checkpoint, eight staggered requests of mixed settings equal their solo runs."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from model.media.image import open_picture, to_png
from model.sources.source import find
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.local import generate
from serving.engine.protocol import EngineRequest
from tests.integration.engine_support import KEEP_ALL, Script, ask, largest_difference

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

STILL = Path(__file__).parents[2] / "docs/assets/still.jpg"


def requests_of(model: LoadedModel, schedule: int, count: int = 8) -> list[EngineRequest]:
    """Mixed steps, solvers and settings."""
    rng, png = random.Random(schedule), to_png(open_picture(STILL.read_bytes()))
    return [
        ask(
            model,
            f"{schedule}-{n}",
            png,
            num_inference_steps=rng.randint(2, 6),
            solver=rng.choice(["euler", "heun", "dpmpp-2m"]),
            max_guidance_scale=rng.choice([1.0, 2.0, 3.0]),
            fps=rng.randint(4, 30),
            motion_bucket_id=rng.randint(1, 255),
            noise_aug_strength=rng.choice([0.0, 0.02, 0.2]),
        )
        for n in range(count)
    ]


def later(requests: list[EngineRequest], schedule: int) -> dict[int, EngineRequest]:
    """When each of them comes, in steps made by all."""
    rng, at, out = random.Random(schedule), 0, {}
    for request in requests:
        at += rng.randint(1, 3)
        out[at] = request
    return out


@pytest.mark.parametrize("schedule", [1, 2, 3])
def test_staggered_requests_equal_their_solo_runs(schedule: int) -> None:
    model = load_model(find("mini-image-to-video"), KEEP_ALL)
    requests = requests_of(model, schedule)
    together = Script(model, skip_decode=True)
    stats = together.run(requests[0], after=later(requests[1:], schedule))
    assert stats.denoiser_calls < stats.rows_stepped
    differences = []
    for request in requests:
        alone = Script(model, skip_decode=True)
        alone.run(request)
        differences.append(largest_difference(together.latents(request.job_id), alone.latents(request.job_id)))
    print(f"schedule {schedule}: {stats.rows_per_call} rows a call, largest latent difference {max(differences):.1e}")
    assert max(differences) <= 1e-5


def test_deterministic_mode_is_bit_identical_also_across_an_interruption() -> None:
    settings = replace(KEEP_ALL, deterministic=True)
    model = load_model(find("mini-image-to-video"), settings)
    requests = requests_of(model, schedule=4, count=4)
    together = Script(model, settings)
    together.run(requests[0], after=later(requests[1:], 4))
    for n, request in enumerate(requests):
        done = together.completed(request.job_id)
        assert done.frames_sha256 == generate(model, request.params, request.images).completed.frames_sha256
        states = together.states(request.job_id)
        resumed = Script(model, settings)
        resumed.run(replace(request, resume_from=states[sorted(states)[n % len(states)]]))
        assert resumed.completed(request.job_id).frames_sha256 == done.frames_sha256
