"""Feature reuse: whole evaluations are diffusers' own; each row has its own age; company changes nothing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.denoiser import CachedFeatures, Conditioning, CpuThreads, TorchDenoiser, caching
from model.errors import InvalidRequest
from model.optimized.feature_cache import FeatureCacheDenoiser, run_unet
from model.optimized.rewrites import relative_difference
from model.presets import preset
from model.sampling.row import BatchKey, Row
from model.sampling.sampler import advance, sample
from model.sampling.solvers import karras_sigmas
from model.shapes import LatentShape
from model.tasks import task
from model.unet import build_unet

FRAMES = preset("tiny").num_frames


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_unet(preset("tiny"), task("image-to-video")).eval().requires_grad_(False)


def row(seed: int, steps: int = 4, scale: float = 2.0) -> Row:
    g = torch.Generator().manual_seed(seed)
    latent = LatentShape(FRAMES, 4, 8, 8)
    conditioning = Conditioning(
        torch.randn(1, 32, generator=g), torch.randn(FRAMES, 4, 8, 8, generator=g), torch.rand(3, generator=g)
    )
    return Row.begin(
        BatchKey("tiny", latent, "float32"),
        solver="euler",
        sigmas=karras_sigmas(steps, 0.02, 80.0),
        noise=torch.randn(latent.as_tuple(), generator=g),
        conditioning=conditioning,
        scale=torch.full((FRAMES,), scale),
        seed=seed,
    )


@pytest.mark.parametrize("depth", [1, 2])
def test_whole_and_outer_evaluations_agree_on_the_same_input(unet: torch.nn.Module, depth: int) -> None:
    g = torch.Generator().manual_seed(1)
    told = (
        torch.randn(2, FRAMES, 8, 8, 8, generator=g),
        torch.tensor([0.3, -0.7]),
        torch.randn(2, 1, 32, generator=g),
        torch.rand(2, 3, generator=g),
    )
    sample_, timestep, context, vector = told
    with torch.inference_mode():
        plain = unet(sample_, timestep, context, added_time_ids=vector, return_dict=False)[0]
        whole, deep = run_unet(unet, *told, None, depth)  # type: ignore[arg-type]
        outer, again = run_unet(unet, *told, deep, depth)  # type: ignore[arg-type]
    assert relative_difference(whole, plain) < 1e-6
    assert relative_difference(outer, plain) < 1e-6  # the features are those of this very input
    assert torch.equal(again, deep)


def test_every_one_is_the_plain_denoiser(unet: torch.nn.Module) -> None:
    reusing = FeatureCacheDenoiser(copy.deepcopy(unet), CpuThreads(2), every=1)  # type: ignore[arg-type]
    plain = TorchDenoiser(unet, CpuThreads(2))  # type: ignore[arg-type]
    assert caching(reusing) is reusing and caching(plain) is None
    assert relative_difference(sample(reusing, row(3)).latents, sample(plain, row(3)).latents) < 1e-5


@pytest.mark.slow
def test_rows_of_different_ages_do_not_know_each_other(unet: torch.nn.Module) -> None:
    denoiser = FeatureCacheDenoiser(unet, CpuThreads(2), every=2)  # type: ignore[arg-type]
    alone = [sample(denoiser, row(seed, steps)) for seed, steps in ((1, 4), (2, 5))]
    (first,) = advance(denoiser, [row(1, 4)])  # one step ahead: the two are never due together
    second = row(2, 5)
    ages = []
    while not (first.done and second.done):
        going = [one for one in (first, second) if not one.done]
        went = iter(advance(denoiser, going))
        first, second = (one if one.done else next(went) for one in (first, second))
        ages.append(tuple(None if one.cached_features is None else one.cached_features.age for one in (first, second)))
    assert (1, 0) in ages and (0, 1) in ages
    assert torch.equal(first.latents, alone[0].latents)
    assert torch.equal(second.latents, alone[1].latents)


def test_half_of_the_evaluations_leave_the_deep_layers_out(unet: torch.nn.Module) -> None:
    calls = []
    handle = unet.mid_block.register_forward_hook(lambda *_: calls.append(1))  # type: ignore[union-attr,operator]
    sample(FeatureCacheDenoiser(unet, CpuThreads(2), every=2), row(1, 6, scale=1.0))  # type: ignore[arg-type]
    handle.remove()
    assert len(calls) == 3


def test_a_row_guided_again_begins_with_a_whole_evaluation(unet: torch.nn.Module) -> None:
    denoiser = FeatureCacheDenoiser(unet, CpuThreads(2), every=8)  # type: ignore[arg-type]
    begun = row(1, 6)
    inside = replace(begun, guidance_interval=(begun.sigmas[3], begun.sigmas[1]))
    places, ages = [], []
    while not inside.done:
        places.append(len(inside.active_conditions))
        (inside,) = advance(denoiser, [inside])
        assert inside.cached_features is not None
        ages.append(inside.cached_features.age)
    assert places == [1, 2, 2, 1, 1, 1]
    assert ages[:2] == [0, 0] and ages[2:] == [1, 2, 3, 4]


def test_what_cannot_be_is_told(unet: torch.nn.Module) -> None:
    with pytest.raises(InvalidRequest, match="reuse 0:1"):
        FeatureCacheDenoiser(unet, CpuThreads(1), every=0)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="depth from 1 to 2"):
        FeatureCacheDenoiser(unet, CpuThreads(1), every=2, depth=3)  # type: ignore[arg-type]


def test_features_too_old_are_not_used(unet: torch.nn.Module) -> None:
    denoiser = FeatureCacheDenoiser(unet, CpuThreads(1), every=2)  # type: ignore[arg-type]
    features = torch.zeros(2, 1)
    assert denoiser._usable(CachedFeatures(features, 0), 2) is not None
    assert denoiser._usable(CachedFeatures(features, 1), 2) is None
    assert denoiser._usable(CachedFeatures(features[:1], 0), 2) is None
    assert isinstance(denoiser._usable(CachedFeatures(features, 0), 1), Tensor)
