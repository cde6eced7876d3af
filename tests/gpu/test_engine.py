"""On a GPU: the engine's contract in half precision, out of memory, decoding beside steps, LoRAs, training steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.catalog import ModelEntry
from model.checkpoint import load
from model.media.video import decode_video
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.protocol import EngineRequest
from tests.integration.engine_support import KEEP_ALL, Script, ask
from tests.support.loras import drawn_lora
from tests.support.training_steps import RECIPES, check_step
from tests.unit.training import toy_run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

ON_GPU = replace(KEEP_ALL, device="cuda", dtype="float16")
PSNR = 45.0
"""dB between frames of a row in company and alone, in half precision."""


@pytest.fixture(scope="module")
def model(entry: ModelEntry) -> LoadedModel:
    return load_model(entry, ON_GPU)


def requests(model: LoadedModel, picture: bytes, count: int = 8) -> list[EngineRequest]:
    solvers = ("euler", "heun", "dpmpp-2m", "euler")
    return [
        ask(
            model,
            f"job-{number}",
            picture,
            num_inference_steps=3 + number % 4,
            solver=solvers[number % 4],
            max_guidance_scale=1.0 if number % 3 == 0 else 3.0,
            motion_bucket_id=10 + 20 * number,
        )
        for number in range(count)
    ]


def frames(script: Script, job_id: str) -> np.ndarray:
    return decode_video(script.completed(job_id).video)[0].astype(np.float64)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = float(((one - other) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def test_eight_staggered_jobs_are_their_solo_runs_while_others_decode(model: LoadedModel, picture: bytes) -> None:
    first, *later = requests(model, picture)
    together = Script(model, ON_GPU)
    together.run(first, after={2 * number + 1: one for number, one in enumerate(later)})
    for request in (first, *later):
        alone = Script(model, ON_GPU)
        alone.run(request)
        assert psnr(frames(together, request.job_id), frames(alone, request.job_id)) >= PSNR


def test_out_of_memory_is_contained_and_the_engine_goes_on(model: LoadedModel, picture: bytes) -> None:
    """With hardly more memory than there is in use: calls shrink or jobs fail, and then all is as before."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 4 * 2**20) / total)
    try:
        tight = Script(model, ON_GPU)
        tight.run(*requests(model, picture, 4))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(tight.events[f"job-{number}"] for number in range(4)), "every job came to an end"
    after = Script(model, ON_GPU)
    after.run(*requests(model, picture, 2))
    assert {type(after.last(f"job-{number}")).__name__ for number in range(2)} == {"Completed"}


def test_a_lora_is_applied_and_gone_again(entry: ModelEntry, picture: bytes, tmp_path: Path) -> None:
    lora = drawn_lora(tmp_path / "pan.safetensors", load(entry).unet, 1)
    model = load_model(replace(entry, loras=(lora,)), ON_GPU)
    videos = []
    for name in (None, "pan", None):
        asked: dict[str, Any] = {} if name is None else {"lora": name}
        script = Script(model, ON_GPU)
        script.run(ask(model, "same", picture, num_inference_steps=3, motion_bucket_id=40, **asked))
        videos.append(frames(script, "same"))
    assert psnr(videos[0], videos[2]) >= PSNR
    assert psnr(videos[0], videos[1]) < psnr(videos[0], videos[2])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_steps_run_on_the_device(tmp_path: Path, precision: str) -> None:
    toy_run.main(tmp_path, ["optim.iterations=3", f"runtime.precision={precision}"])
    assert torch.cuda.max_memory_allocated() > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_of_every_recipe_runs_on_the_device(recipe: str, device: torch.device) -> None:
    check_step(recipe, device)
