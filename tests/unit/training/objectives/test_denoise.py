"""The denoising objective: EDM's loss, one sigma a clip, and the condition as at inference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from model.optimized.rewrites import rewrite_exactly
from model.presets import preset
from model.sampling.sampler import append_dims, loss_weight, precondition
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae, encode_mode
from tests.unit.training.support import moving_square
from training.config import DenoiserConfig
from training.data.config import FilmData
from training.data.frames import subsample
from training.data.latents import LatentClip, encode_clips, to_pixels
from training.data.motion_bucket import MotionMap, measure_flow
from training.objectives.contrastive import CLIP_MEAN, CLIP_STD
from training.objectives.denoise import DenoiseObjective, denoising_error
from training.objectives.examples.drawing import noisy_latent
from training.objectives.examples.film import FilmExamples
from training.objectives.protocol import Batch, split_into_calls
from training.recipes.image_to_video import mini_image_to_video

RECIPE = mini_image_to_video()
CONFIG = dataclasses.replace(
    RECIPE,
    preset="tiny",
    optim=dataclasses.replace(RECIPE.optim, batch=3),
    height=64,
    width=64,
    num_frames=6,
    copying_start=False,
    window_until=1,
    window_height=32,
    window_width=48,
)


def objective_of(config: DenoiserConfig, like: DenoiseObjective) -> DenoiseObjective:
    """The same data and network under another config."""
    old = like.examples
    assert isinstance(old, FilmExamples)
    examples = FilmExamples(config, old.data, old.clips, old.vae, old.motion)
    return DenoiseObjective(config, like.network, examples)


def film(objective: DenoiseObjective) -> FilmExamples:
    assert isinstance(objective.examples, FilmExamples)
    return objective.examples


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> DenoiseObjective:
    from model.encoders import ImageEncoder, build_image_encoder

    torch.manual_seed(0)
    vae = build_vae(preset("tiny")).eval().requires_grad_(False)
    encoder = build_image_encoder(preset("tiny").image_encoder).eval()
    clips = [subsample(moving_square(f"c{i}", speed=1 + 2 * i, seed=i), 2) for i in range(2)]
    assert isinstance(CONFIG.data, FilmData)
    tower = ImageEncoder(encoder, CLIP_MEAN, CLIP_STD)
    latents = encode_clips(clips, vae, tower, tmp_path_factory.mktemp("cache"), CONFIG.data.strides)
    unet = build_unet(preset("tiny"), task("image-to-video"), num_frames=6)
    rewrite_exactly(unet, context_tokens=1)
    return DenoiseObjective(CONFIG, unet, FilmExamples(CONFIG, CONFIG.data, latents, vae, MotionMap()))


def test_the_error_is_edm_s_weighted_error_of_the_denoised_clip() -> None:
    g = torch.Generator().manual_seed(1)
    clean, noise, raw = (torch.randn(3, 2, 4, 4, 4, generator=g) for _ in range(3))
    sigma = torch.tensor([0.05, 1.0, 40.0])

    def network(*_: object, **__: object) -> tuple[torch.Tensor]:
        return (raw,)

    batch = Batch(clean, clean, clean[:, 0, :, 0], torch.zeros(3, 3), ("a", "b", "c"))
    ours = denoising_error(network, batch, sigma, noise)  # type: ignore[arg-type]
    noisy = clean + append_dims(sigma, clean) * noise
    c = precondition(sigma)
    denoised = append_dims(c.c_skip, clean) * noisy + append_dims(c.c_out, clean) * raw
    theirs = loss_weight(sigma) * (denoised - clean).square().mean(dim=(1, 2, 3, 4))
    assert torch.allclose(ours, theirs, rtol=1e-3)


def test_fps_follows_the_stride_and_the_bucket_the_measured_flow(objective: DenoiseObjective) -> None:
    seen = {(row.vector[0, 0].item(), row.vector[0, 1].item()) for step in range(12) for row in objective.rows(step)}
    assert {fps for fps, _ in seen} == {11.0, 5.0}
    assert len({bucket for _, bucket in seen}) > 3


def test_a_cached_flow_is_the_flow_of_the_clip(objective: DenoiseObjective) -> None:
    clip = film(objective).clips[0]
    index = [0, 2, 4, 6, 8, 10]
    whole = measure_flow(clip.clip.frames[index], clip.clip.item.fps / 2)
    assert float(clip.flow[2][index[:-1]].mean()) == pytest.approx(whole, rel=1e-5)


def test_the_condition_is_the_unscaled_mode_of_the_noisy_first_frame(objective: DenoiseObjective) -> None:
    clip, vae = film(objective).clips[0], film(objective).vae
    ours = noisy_latent(vae, clip, 3, 0.1, torch.Generator().manual_seed(4))
    pixels = to_pixels(clip.clip.frames[3:4])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(ours, encode_mode(vae, pixels + 0.1 * noise)[0])


def test_dropout_zeroes_both_picture_paths_and_keeps_the_vector(objective: DenoiseObjective) -> None:
    dropped = objective_of(dataclasses.replace(CONFIG, condition_dropout=1.0), objective)
    for row, whole in zip(dropped.rows(7), objective.rows(7), strict=True):
        assert not row.concat.any() and not row.context.any()
        assert torch.equal(row.clean, whole.clean)
        assert torch.equal(row.vector, whole.vector)


def test_windows_come_first_and_whole_frames_later(objective: DenoiseObjective) -> None:
    assert [row.clean.shape for row in objective.rows(0)] == [(1, 6, 4, 4, 6)] * 3
    assert [row.clean.shape for row in objective.rows(1)] == [(1, 6, 4, 8, 8)] * 3


def test_a_row_does_not_depend_on_how_many_there_are(objective: DenoiseObjective) -> None:
    smaller = objective_of(dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, batch=1)), objective)
    (alone,), first = smaller.rows(5), objective.rows(5)[0]
    assert torch.equal(alone.clean, first.clean) and alone.names == first.names
    assert torch.equal(smaller.noise(alone, 5)[1], objective.noise(first, 5)[1])


def test_rows_become_at_most_two_calls_and_lose_nothing(objective: DenoiseObjective) -> None:
    rows = [row for step in (1, 2) for row in objective.rows(step)]
    halves = split_into_calls(rows[:5])
    assert [len(half.clean) for half in halves] == [3, 2]
    assert [name for half in halves for name in half.names] == [row.names[0] for row in rows[:5]]
    picture = dataclasses.replace(rows[0], pictures=True)
    assert [call.pictures for call in split_into_calls([picture, *rows[:4]])] == [False, True]


def test_the_time_embedding_trains_alone_where_the_recipe_says_so(objective: DenoiseObjective) -> None:
    timed = DenoiseObjective(dataclasses.replace(CONFIG, time_only_until=2), objective.network, objective.examples)
    timed.enter(1)
    alone = {name for name, p in timed.module.named_parameters() if p.requires_grad}
    assert alone == {f"time_embedding.linear_{k}.{part}" for k in (1, 2) for part in ("weight", "bias")}
    timed.enter(2)
    assert all(p.requires_grad for p in timed.module.parameters())
    assert isinstance(timed.module, nn.Module)


@pytest.mark.slow
def test_training_lowers_the_loss(objective: DenoiseObjective) -> None:
    optimizer = torch.optim.AdamW(objective.module.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        losses.append(objective.backward(step % 3 + 1)["loss"])
        optimizer.step()
        optimizer.zero_grad()
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    assert math.isfinite(losses[-1])
    assert len(CLIP_MEAN) == 3
    assert isinstance(film(objective).clips[0], LatentClip)
