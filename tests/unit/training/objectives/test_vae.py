"""The autoencoder's objective: its target is PCA, and each phase starts as a no-op on the one before."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from model.optimized.rewrites import skip_zero_branches
from tests.unit.training.support import moving_square
from training.objectives.vae import PatchPCA, VAEObjective, differences
from training.recipes.vae import mini_vae

CONFIG = dataclasses.replace(
    mini_vae(),
    preset="tiny",
    optim=dataclasses.replace(mini_vae().optim, batch=4),
    skeleton_until=3,
    spatial_until=6,
    phase_warmup=2,
    phase_batch=4,
    crop=32,
    frames=2,
)


@pytest.fixture(scope="module")
def objective() -> VAEObjective:
    return VAEObjective(CONFIG, [moving_square(f"c{i}", seed=i) for i in range(3)])


def test_fully_white_targets_are_numpy_s_principal_components() -> None:
    pixels = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.avg_pool2d(pixels, 3, 1, 1)  # correlated, so that components differ
    latents = PatchPCA(pixels, 6, whitening=1.0)(pixels).permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    patches = torch.nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2).reshape(-1, 192).double().numpy()
    centred = patches - patches.mean(0)
    _, _, vectors = np.linalg.svd(centred, full_matrices=False)
    assert np.allclose(np.cov(latents.T), np.eye(6), atol=2e-3)
    assert np.allclose(latents.mean(0), 0, atol=1e-4)
    expected = centred @ vectors[:6].T
    cosine = np.abs((latents * expected).sum(0)) / np.linalg.norm(latents, axis=0) / np.linalg.norm(expected, axis=0)
    assert np.all(cosine > 0.999)


def test_partial_whitening_keeps_unit_variance_on_average() -> None:
    pixels = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 16, 16), 5, 1, 2)
    latents = PatchPCA(pixels, 8, whitening=0.5)(pixels)
    variances = latents.var(dim=(0, 2, 3))
    assert float(variances.mean()) == pytest.approx(1.0, rel=0.02)
    assert float(variances[0]) > float(variances[-1])


def reconstruct(objective: VAEObjective, frames: int) -> torch.Tensor:
    pixels = objective.crops(step=100, count=2, frames=frames)
    with torch.no_grad():
        latents = objective.vae.encode(pixels).latent_dist.mode()
        return objective.vae.decode(latents, num_frames=frames).sample


@pytest.mark.parametrize(("before", "after"), [(2, 3), (5, 6)])
def test_each_phase_starts_as_a_no_op(objective: VAEObjective, before: int, after: int) -> None:
    objective.enter(before)
    first = reconstruct(objective, 2)
    objective.enter(after)
    assert torch.equal(reconstruct(objective, 2), first)


def test_until_its_temporal_layers_join_the_decoder_takes_each_frame_alone(objective: VAEObjective) -> None:
    objective.enter(5)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = objective.vae.decode(latents, num_frames=3).sample
        alone = torch.cat([objective.vae.decode(one[None], num_frames=1).sample for one in latents])
    assert torch.allclose(together, alone, atol=1e-4)


def test_the_encoder_freezes_after_the_skeleton_and_the_decoder_goes_on(objective: VAEObjective) -> None:
    objective.enter(3)
    assert not any(p.requires_grad for p in objective.vae.encoder.parameters())
    spatial = objective.vae.decoder.up_blocks[0].resnets[0].spatial_res_block
    temporal = objective.vae.decoder.up_blocks[0].resnets[0].temporal_res_block
    assert all(p.requires_grad for p in spatial.parameters())
    assert not any(p.requires_grad for p in temporal.parameters())
    objective.enter(6)
    assert all(p.requires_grad for p in temporal.parameters())


def test_the_rate_rises_again_with_each_phase(objective: VAEObjective) -> None:
    assert [objective.rate(step) for step in (0, 2, 3, 4, 5, 6, 7)] == [1, 1, 0.5, 1, 1, 0.5, 1]


def test_a_batch_depends_on_the_iteration_alone(objective: VAEObjective) -> None:
    objective.enter(0)
    first = objective.loss(1)[0]
    objective.loss(2)
    assert torch.equal(objective.loss(1)[0], first)


def test_differences_are_of_neighbours() -> None:
    ramp = torch.arange(12.0).reshape(1, 1, 3, 4)
    across, down = differences(ramp)
    assert torch.equal(across, torch.ones(1, 1, 3, 3))
    assert torch.equal(down, torch.full((1, 1, 2, 4), 4.0))


def test_skipping_zero_branches_changes_nothing(objective: VAEObjective) -> None:
    objective.enter(10)
    whole = reconstruct(objective, 2)
    assert skip_zero_branches(objective.vae) > 0
    assert torch.equal(reconstruct(objective, 2), whole)
