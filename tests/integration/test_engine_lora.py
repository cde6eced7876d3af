"""Rows of two LoRAs, of two strengths and of none in one engine: no call mixes them, and each is as if alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from model.backends import compiled
from model.catalog import ModelEntry, describe, with_lora
from model.checkpoint import load
from model.errors import CheckpointError
from model.lora.catalog import FOLDER, LoraEntry
from model.lora.merge import LoraDenoiser
from model.optimized.rewrites import relative_difference
from model.presets import NoiseRange, preset
from model.tasks import task
from model.testing import build_random
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.protocol import EngineRequest, Failed
from tests.integration.engine_support import KEEP_ALL, Script, Watched, ask
from tests.support.loras import drawn_lora

pytestmark = pytest.mark.timeout(900)  # seconds; ten on a quiet machine
PINNED = replace(KEEP_ALL, deterministic=True)
STEPS = 3


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    """A checkpoint that offers none."""
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    return build_random(folder, replace(preset("tiny"), noise=NoiseRange(0.02, 20.0)), task("image-to-video"), seed=5)


@pytest.fixture(scope="module")
def loras(plain: ModelEntry, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoraEntry, ...]:
    folder, unet = tmp_path_factory.mktemp("loras"), load(plain).unet
    return tuple(drawn_lora(folder / f"{name}.safetensors", unet, seed) for seed, name in enumerate(("pan", "zoom")))


@pytest.fixture(scope="module")
def model(plain: ModelEntry, loras: tuple[LoraEntry, ...]) -> LoadedModel:
    return load_model(replace(plain, loras=loras), PINNED)


@pytest.fixture(scope="module")
def picture() -> bytes:
    out = BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


KINDS: dict[str, dict[str, object]] = {
    "none": {},
    "pan": {"lora": "pan"},
    "zoom": {"lora": "zoom"},
    "half": {"lora": "pan", "lora_scale": 0.5},
}
"""What some requests ask for, and each has a motion bucket that tells it in a call."""
TWICE = ("none", "pan")


def requests(model: LoadedModel, picture: bytes) -> dict[str, EngineRequest]:
    made = {}
    for number, (kind, asked) in enumerate(KINDS.items()):
        for which in range(2 if kind in TWICE else 1):
            job, told = f"{kind}-{which}", {"motion_bucket_id": 10 * (number + 1) + which, **asked}
            made[job] = ask(model, job, picture, num_inference_steps=STEPS, **told)
    return made


@pytest.fixture(scope="module")
def together(model: LoadedModel, picture: bytes) -> tuple[Script, Watched]:
    """All of them, the later ones joining while the earlier ones are under way."""
    assert isinstance(model.denoiser, LoraDenoiser)
    watched = Watched(model.denoiser._inner)
    model.denoiser._inner = watched
    script = Script(model, PINNED, skip_decode=True)
    first, *later = requests(model, picture).values()
    script.run(first, after={2 * number + 1: one for number, one in enumerate(later)})
    model.denoiser._inner = watched.inner  # type: ignore[assignment]
    return script, watched


def test_no_call_mixes_loras_or_strengths(together: tuple[Script, Watched]) -> None:
    _, watched = together
    kinds = [{bucket // 10 for bucket in call} for call in watched.calls]
    assert [kind for kind in kinds if len(kind) != 1] == []
    assert {next(iter(kind)) for kind in kinds} == {1, 2, 3, 4}
    assert sum(len(call) == 2 for call in watched.calls) > 0, "rows of one LoRA do share calls"
    switches = sum(before != after for before, after in pairwise(kinds))
    assert switches > 6, "they took turns"


@pytest.mark.slow
def test_each_row_is_as_if_it_were_alone(
    model: LoadedModel, plain: ModelEntry, picture: bytes, together: tuple[Script, Watched]
) -> None:
    script, _ = together
    without = load_model(plain, PINNED)
    seen = []
    for job, request in requests(model, picture).items():
        alone = Script(without if job.startswith("none") else model, PINNED, skip_decode=True)
        alone.run(request)
        assert torch.equal(alone.latents(job), script.latents(job)), job
        seen.append(script.latents(job))
    assert all(not torch.equal(one, other) for one in seen for other in seen if one is not other)


@pytest.mark.slow
def test_compiled_blocks_give_each_row_its_own_lora(
    model: LoadedModel, plain: ModelEntry, loras: tuple[LoraEntry, ...], picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, not compiled, which takes a minute: tests/unit/model/backends/test_compiled.py does that."""
    monkeypatch.setattr(compiled, "compile_blocks", partial(compiled.compile_blocks, backend="eager"))
    traced = load_model(replace(plain, loras=loras), replace(PINNED, backend="torch-compiled"))
    script = Script(traced, PINNED, skip_decode=True)
    first, *later = requests(traced, picture).values()
    script.run(first, after={2 * number + 1: one for number, one in enumerate(later)})
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    for job, request in requests(model, picture).items():
        alone = Script(traced, PINNED, skip_decode=True)
        alone.run(request)
        assert torch.equal(alone.latents(job), script.latents(job)), job
        eager = Script(model, PINNED, skip_decode=True)
        eager.run(request)
        assert relative_difference(script.latents(job), eager.latents(job)) < 1e-4, job
    assert counters["stats"]["unique_graphs"] == before, "a switch compiles nothing"


def test_a_stored_state_goes_on_with_its_own_lora_only(
    model: LoadedModel, picture: bytes, together: tuple[Script, Watched]
) -> None:
    script, _ = together
    state = script.states("pan-0")[2]
    request = requests(model, picture)["pan-0"]
    again = Script(model, PINNED, skip_decode=True)
    again.run(replace(request, resume_from=state))
    assert torch.equal(again.latents("pan-0"), script.latents("pan-0"))
    for changed in ({"lora": "zoom"}, {"lora": "pan", "lora_scale": 0.9}, {}):
        told = {"motion_bucket_id": 20, "num_inference_steps": STEPS, **changed}
        other = Script(model, PINNED)
        other.run(replace(ask(model, "pan-0", picture, **told), resume_from=state))
        ended = other.last("pan-0")
        assert isinstance(ended, Failed) and "another request" in ended.message, changed


def test_a_lora_that_is_not_here_ends_the_job_that_asked_for_it(model: LoadedModel, picture: bytes) -> None:
    good = requests(model, picture)["none-0"]
    gone = replace(good.params, lora="tilt@0123456789ab", lora_scale=1.0)
    stale = replace(good.params, lora="pan@0123456789ab", lora_scale=1.0)
    script = Script(model, PINNED, skip_decode=True)
    script.run(good, replace(good, job_id="gone", params=gone), replace(good, job_id="stale", params=stale))
    ended = {job: script.last(job) for job in ("gone", "stale")}
    assert {job: one.code for job, one in ended.items() if isinstance(one, Failed)} == {
        "gone": "lora_not_found",
        "stale": "other_version",
    }
    assert script.latents("none-0").isfinite().all()


def test_the_result_says_which_lora_it_was_made_with(
    model: LoadedModel, loras: tuple[LoraEntry, ...], picture: bytes
) -> None:
    script = Script(model, PINNED)
    script.run(ask(model, "one", picture, num_inference_steps=1, lora="pan", lora_scale=-1.5))
    manifest = script.completed("one").manifest
    pan = loras[0]
    told = {"name": "pan", "version": pan.version, "scale": -1.5, "rank": 4, "alpha": 6.0, "base": ""}
    assert manifest["lora"] == told
    params = manifest["params"]
    assert isinstance(params, dict)
    assert (params["lora"], params["lora_scale"]) == (pan.pinned, -1.5)


def test_a_checkpoint_s_own_folder_offers_loras_and_keeps_its_version(plain: ModelEntry) -> None:
    folder = plain.path / FOLDER
    folder.mkdir()
    try:
        made = drawn_lora(folder / "tilt.safetensors", load(plain).unet, 3)
        found = describe(plain.path)
        assert found.loras == (made,)
        assert found.version == plain.version
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_one_for_another_task_does_not_load(plain: ModelEntry, loras: tuple[LoraEntry, ...]) -> None:
    with pytest.raises(CheckpointError, match="is for text-to-video, and tiny is for image-to-video"):
        load_model(with_lora(plain, replace(loras[0], task="text-to-video")), PINNED)
