"""The denoising objective: EDM's loss, one sigma a clip, and the condition as at inference."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.presets import preset
from model.sampling.precondition import loss_weight, over, precondition
from model.vae import build_vae, encode_mode
from tests.unit.training.support import moving_square
from training.data.frames import thinned
from training.data.latents import LatentClip, encode_clips, to_pixels
from training.motion import MotionMap, measure_flow
from training.objectives.contrastive import CLIP_MEAN
from training.objectives.denoise import Batch, DenoiseObjective, denoising_error
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


@pytest.fixture(scope="module")
def objective(tmp_path_factory: pytest.TempPathFactory) -> DenoiseObjective:
    from model.conditioners import build_image_encoder

    torch.manual_seed(0)
    vae = build_vae(preset("tiny")).eval().requires_grad_(False)
    encoder = build_image_encoder(preset("tiny").image_encoder).eval()
    clips = [thinned(moving_square(f"c{i}", speed=1 + 2 * i, seed=i), 2) for i in range(2)]
    latents = encode_clips(clips, vae, encoder, tmp_path_factory.mktemp("cache"), CONFIG.strides)
    return DenoiseObjective(CONFIG, latents, vae, MotionMap())


def test_the_error_is_edm_s_weighted_error_of_the_denoised_clip() -> None:
    g = torch.Generator().manual_seed(1)
    clean, noise, raw = (torch.randn(3, 2, 4, 4, 4, generator=g) for _ in range(3))
    sigma = torch.tensor([0.05, 1.0, 40.0])

    def network(*_: object, **__: object) -> tuple[torch.Tensor]:
        return (raw,)

    batch = Batch(clean, clean, clean[:, 0, :, 0], torch.zeros(3, 3))
    ours = denoising_error(network, batch, sigma, noise)  # type: ignore[arg-type]
    noisy = clean + over(sigma, clean) * noise
    c = precondition(sigma)
    denoised = over(c.c_skip, clean) * noisy + over(c.c_out, clean) * raw
    theirs = loss_weight(sigma) * (denoised - clean).square().mean(dim=(1, 2, 3, 4))
    assert torch.allclose(ours, theirs, rtol=1e-3)


def test_fps_follows_the_stride_and_the_bucket_the_measured_flow(objective: DenoiseObjective) -> None:
    seen = set()
    for step in range(12):
        for vector in objective.batch(step + 100).vector.tolist():
            seen.add((vector[0], vector[1]))
    assert {fps for fps, _ in seen} == {11.0, 5.0}
    assert len({bucket for _, bucket in seen}) > 3


def test_a_cached_flow_is_the_flow_of_the_clip(objective: DenoiseObjective) -> None:
    clip = objective.film[0]
    index = [0, 2, 4, 6, 8, 10]
    whole = measure_flow(clip.clip.frames[index], clip.clip.item.fps / 2)
    assert float(clip.flow[2][index[:-1]].mean()) == pytest.approx(whole, rel=1e-5)


def test_the_condition_is_the_unscaled_mode_of_the_noisy_first_frame(objective: DenoiseObjective) -> None:
    clip = objective.film[0]
    draw = torch.Generator().manual_seed(4)
    ours = objective._condition(clip, 3, 0.1, draw)
    pixels = to_pixels(clip.clip.frames[3:4])
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(ours, encode_mode(objective.vae, pixels + 0.1 * noise)[0])


def test_dropout_zeroes_both_picture_paths_and_keeps_the_vector(objective: DenoiseObjective) -> None:
    always = SimpleNamespace(**{name: getattr(objective, name) for name in vars(objective)})
    always.config = dataclasses.replace(CONFIG, condition_dropout=1.0)
    dropped = DenoiseObjective.__new__(DenoiseObjective)
    dropped.__dict__.update(vars(always))
    batch, whole = dropped.batch(7), objective.batch(7)
    assert not batch.concat.any() and not batch.context.any()
    assert torch.equal(batch.clean, whole.clean)
    assert torch.equal(batch.vector, whole.vector)


def test_windows_come_first_and_whole_frames_later(objective: DenoiseObjective) -> None:
    assert objective.batch(0).clean.shape == (3, 6, 4, 4, 6)
    assert objective.batch(1).clean.shape == (3, 6, 4, 8, 8)


def test_a_row_s_example_does_not_depend_on_the_batch_size(objective: DenoiseObjective) -> None:
    smaller = DenoiseObjective.__new__(DenoiseObjective)
    smaller.__dict__.update(vars(objective))
    smaller.config = dataclasses.replace(CONFIG, optim=dataclasses.replace(CONFIG.optim, batch=1))
    assert torch.equal(smaller.batch(5).clean[0], objective.batch(5).clean[0])


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
    assert isinstance(objective.film[0], LatentClip)
