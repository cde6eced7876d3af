"""The four tasks through the engine, and each against diffusers' network called by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNetSpatioTemporalConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from model.backends.registry import make_denoiser
from model.catalog import ModelEntry
from model.checkpoint import load
from model.denoiser import DenoiserInputs
from model.media.image import fit_picture
from model.presets import NoiseRange, preset
from model.tasks import TASKS, task
from model.testing import build_random
from model.vae import decode
from serving.engine.inprocess import InProcessEngine
from serving.engine.loaded_model import LoadedModel, load_model
from serving.engine.local import generate
from serving.engine.protocol import Completed, EngineRequest, Failed
from serving.engine.settings import EngineSettings

ON_CPU = EngineSettings(device="cpu", warm_up=False, checkpoint_every_s=None)
FRAMES = {"image-to-video": 4, "text-to-video": 4, "frame-interpolation": 5, "multi-view": 21}
OWN: dict[str, dict[str, object]] = {"text-to-video": {"prompt": "a red ball"}, "multi-view": {"elevation": 30.0}}

pytestmark = [
    pytest.mark.timeout(600),  # seconds on a quiet machine
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' scheduler's own
]


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelEntry]:
    folder = tmp_path_factory.mktemp("models")
    sized = replace(preset("tiny"), noise=NoiseRange(0.02, 20.0), height=32, width=48)
    return {
        name: build_random(folder / name, sized, spec, seed=5, num_frames=FRAMES[name]) for name, spec in TASKS.items()
    }


@pytest.fixture(scope="module")
def models(entries: dict[str, ModelEntry]) -> dict[str, LoadedModel]:
    return {name: load_model(entry, ON_CPU) for name, entry in entries.items()}


def png(seed: int) -> bytes:
    out = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def pictures(name: str) -> tuple[bytes, ...]:
    return tuple(png(seed) for seed in range(len(task(name).pictures)))


def asked(name: str, **changes: object) -> dict[str, Any]:
    return {"num_inference_steps": 2, **OWN.get(name, {}), **changes}


async def ending(engine: InProcessEngine, request: EngineRequest) -> Completed | Failed:
    async for event in engine.submit(request):
        if isinstance(event, Completed | Failed):
            return event
    raise AssertionError("the events ended without a result")


@pytest.mark.slow
async def test_every_task_runs_through_the_engine_and_gives_what_it_gives_alone(
    entries: dict[str, ModelEntry], models: dict[str, LoadedModel]
) -> None:
    engine = InProcessEngine(list(entries.values()), ON_CPU)
    await engine.start()
    try:
        wanted = {name: entry.resolve(asked(name), seed=7) for name, entry in entries.items()}
        requests = [EngineRequest(name, name, params, pictures(name), "mp4") for name, params in wanted.items()]
        results = await asyncio.gather(*(ending(engine, request) for request in requests))
    finally:
        await engine.stop()
    for request, result in zip(requests, results, strict=True):
        assert isinstance(result, Completed), result
        name = request.job_id
        assert (result.num_frames, result.height, result.width) == (FRAMES[name], 32, 48)
        assert result.manifest["task"] == name
        told = result.manifest["params"]
        assert isinstance(told, dict) and OWN.get(name, {}).items() <= told.items()
        alone = generate(models[name], wanted[name], pictures(name))
        assert alone.completed.frames_sha256 == result.frames_sha256
        assert alone.frames.std() > 1, "a constant video would prove nothing"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("text-to-video", {"prompt": "a blue ball"}, marks=pytest.mark.slow),
        ("multi-view", {"elevation": -30.0}),
        ("frame-interpolation", {"noise_aug_strength": 1.0}),
        ("frame-interpolation", {"max_guidance_scale": 1.0}),
    ],
)
def test_what_is_asked_for_changes_the_video(
    name: str, change: dict[str, object], models: dict[str, LoadedModel]
) -> None:
    model = models[name]
    first, other = (
        generate(model, model.entry.resolve(asked(name, **changes), seed=7), pictures(name)) for changes in ({}, change)
    )
    assert float((first.latents - other.latents).abs().max()) > 1e-3


def test_interpolated_clips_begin_and_end_with_the_pictures_themselves(models: dict[str, LoadedModel]) -> None:
    model = models["frame-interpolation"]
    params = model.entry.resolve(asked("frame-interpolation", resize_mode="stretch"), seed=7)
    given = pictures("frame-interpolation")
    made = generate(model, params, given)
    decoded = decode(model.checkpoint.vae, made.latents, params.decode_chunk_size)
    ends = [fit_picture(Image.open(BytesIO(one)), 32, 48, "stretch") for one in given]
    for k, end in zip((0, -1), ends, strict=True):
        assert np.array_equal(made.frames[k], np.asarray(end))
        assert not np.array_equal(decoded[k], made.frames[k]), "the autoencoder lost something, or nothing was held"
    middle = (
        decoded[2] + sum(np.subtract(end, decoded[k], dtype=float) for k, end in zip((0, -1), ends, strict=True)) / 2
    )
    assert np.abs(made.frames[2] - np.clip(middle, 0, 255)).max() <= 0.5 + 1e-4


def test_both_ends_matter_and_so_does_their_order(models: dict[str, LoadedModel]) -> None:
    model = models["frame-interpolation"]
    params = model.entry.resolve(asked("frame-interpolation"), seed=7)
    there, back = (generate(model, params, given) for given in ((png(0), png(1)), (png(1), png(0))))
    assert float((there.latents - back.latents).abs().max()) > 1e-3


async def test_wrong_pictures_are_a_failed_event(entries: dict[str, ModelEntry]) -> None:
    engine = InProcessEngine([entries["text-to-video"], entries["frame-interpolation"]], ON_CPU)
    await engine.start()
    try:
        text = entries["text-to-video"].resolve(asked("text-to-video"), seed=1)
        between = entries["frame-interpolation"].resolve(asked("frame-interpolation"), seed=1)
        too_many = await ending(engine, EngineRequest("a", "text-to-video", text, (png(0),), "mp4"))
        too_few = await ending(engine, EngineRequest("b", "frame-interpolation", between, (png(0),), "mp4"))
        another = await ending(engine, EngineRequest("c", "frame-interpolation", text, (png(0), png(1)), "mp4"))
    finally:
        await engine.stop()
    for result, words in ((too_many, "takes 0 pictures"), (too_few, "takes 2 pictures"), (another, "serves frame")):
        assert isinstance(result, Failed)
        assert words in result.message


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_rewritten_denoiser_is_diffusers_network(name: str, entries: dict[str, ModelEntry]) -> None:
    """Only a context of one token is folded: with two or 77, attention stays."""
    entry, spec = entries[name], task(name)
    plain = UNetSpatioTemporalConditionModel.from_pretrained(entry.path / "unet").eval()
    ours = make_denoiser("torch", load(entry))
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    frames, rows = FRAMES[name], 2
    latents, concat = draw(rows, frames, 4, 4, 6), draw(rows, frames, spec.concat_channels(4), 4, 6)
    context, vector = draw(rows, spec.context_tokens, 32), draw(rows, len(spec.vector)) * 10
    levels = torch.tensor([0.7, -0.4])
    with torch.no_grad():
        sample = torch.cat([latents, concat], dim=2)
        theirs = plain(sample, levels, context, added_time_ids=vector, return_dict=False)[0]
    got = ours(DenoiserInputs(latents, levels, context, concat, vector))
    assert torch.allclose(got, theirs, atol=1e-5)


def test_text_to_video_is_diffusers_network_stepped_by_diffusers_scheduler(entries: dict[str, ModelEntry]) -> None:
    """No pipeline of diffusers' does this, so its parts are put together here: encoder, network, scheduler."""
    entry, steps, scale, prompt = entries["text-to-video"], 4, 3.0, "a red ball"
    wish = {"num_inference_steps": steps, "max_guidance_scale": scale, "prompt": prompt, "fps": 9}
    ours = generate(entry, entry.resolve(wish, seed=11), (), settings=ON_CPU)
    unet = UNetSpatioTemporalConditionModel.from_pretrained(entry.path / "unet").eval()
    encoder = CLIPTextModel.from_pretrained(entry.path / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(entry.path / "tokenizer")
    scheduler = EulerDiscreteScheduler.from_pretrained(entry.path / "scheduler")
    with torch.no_grad():
        ids = tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        conditional = encoder(ids)[0]
        context = torch.cat([torch.zeros_like(conditional), conditional])
        vector = torch.tensor([[8.0, 127.0]] * 2)
        scheduler.set_timesteps(steps)
        shape = (1, FRAMES["text-to-video"], 4, 4, 6)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(11)) * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([x, x]), time)
            without, told = unet(both, time, context, added_time_ids=vector, return_dict=False)[0].chunk(2)
            x = scheduler.step(without + scale * (told - without), time, x).prev_sample
    assert float((ours.latents - x[0]).abs().max()) < 1e-4
