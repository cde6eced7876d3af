"""Lean blocks against diffusers' unmodified networks: the same numbers, keys, layouts, and less memory moved."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor

from model.optimized import fused_blocks
from model.optimized.attention import KERNELS, usable
from model.optimized.fused_blocks import FusedResBlock, FusedTransformer, fuse
from model.optimized.rewrites import relative_difference, rewrite_exactly
from model.presets import preset
from model.tasks import TASKS, task
from model.unet import build_unet
from model.vae import build_vae

TOLERANCE = 1e-5
"""Largest difference over largest magnitude, float32 on a CPU."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def plain_unet(name: str = "image-to-video", seed: int = 0) -> UNetSpatioTemporalConditionModel:
    """With blends that lie anywhere, as in trained networks (fresh ones are all 0.5)."""
    torch.manual_seed(seed)
    unet = build_unet(preset("tiny"), task(name)).eval().requires_grad_(False)
    for key, value in unet.named_parameters():
        if key.endswith("mix_factor"):
            value.data.normal_()
    return unet


def told(unet: UNetSpatioTemporalConditionModel, name: str, rows: int, frames: int, side: int = 8) -> Inputs:
    g = torch.Generator().manual_seed(rows)
    spec = task(name)
    return (
        torch.randn(rows, frames, unet.config["in_channels"], side, side, generator=g),
        torch.linspace(-1.2, 1.6, rows),
        torch.randn(rows, spec.context_tokens, 32, generator=g),
        torch.rand(rows, len(spec.vector), generator=g),
    )


def answer(unet: UNetSpatioTemporalConditionModel, inputs: Inputs) -> Tensor:
    sample, timestep, context, vector = inputs
    with torch.inference_mode():
        given: Tensor = unet(sample, timestep, context, added_time_ids=vector, return_dict=False)[0]
    return given


@pytest.mark.parametrize(
    "name",
    ["image-to-video", *(pytest.param(name, marks=pytest.mark.slow) for name in TASKS if name != "image-to-video")],
)
@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_every_task_s_denoiser_keeps_its_numbers(name: str, rows: int) -> None:
    plain = plain_unet(name)
    lean = copy.deepcopy(plain)
    assert fuse(lean) == sum(isinstance(layer, FusedResBlock | FusedTransformer) for layer in lean.modules()) > 0
    inputs = told(plain, name, rows, preset("tiny").num_frames)
    assert relative_difference(answer(lean, inputs), answer(plain, inputs)) < TOLERANCE
    assert list(lean.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(mine, plain.state_dict()[key]) for key, mine in lean.state_dict().items())


def test_a_clip_of_another_length_and_odd_size() -> None:
    plain = plain_unet()
    lean = copy.deepcopy(plain)
    fuse(lean)
    inputs = told(plain, "image-to-video", 2, frames=4, side=7)
    assert relative_difference(answer(lean, inputs), answer(plain, inputs)) < TOLERANCE


def test_a_network_rewritten_before_may_be_fused() -> None:
    plain = plain_unet()
    lean = copy.deepcopy(plain)
    for key, value in lean.named_parameters():
        if "temporal_res_block.conv2" in key or "down_blocks.0.resnets.0.spatial_res_block.conv2" in key:
            value.data.zero_()
    zeroed = copy.deepcopy(lean)
    rewrite_exactly(lean, context_tokens=1)
    fuse(lean)
    inputs = told(plain, "image-to-video", 2, preset("tiny").num_frames)
    assert relative_difference(answer(lean, inputs), answer(zeroed, inputs)) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in ("xformers", "flash3")])
def test_every_attention_kernel_that_runs_here_gives_the_same(name: str) -> None:
    if name not in usable((2, 2, 16, 16), torch.device("cpu"), torch.float32):
        pytest.skip(f"{name} does not run on a CPU")
    plain = plain_unet("text-to-video")
    lean = copy.deepcopy(plain)
    fuse(lean, KERNELS[name])
    inputs = told(plain, "text-to-video", 2, preset("tiny").num_frames)
    assert relative_difference(answer(lean, inputs), answer(plain, inputs)) < TOLERANCE


def test_projections_share_one_weight() -> None:
    unet = plain_unet()
    fuse(unet)
    attn = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    base = attn.stacked.data_ptr()
    assert attn.to_q.weight.data_ptr() == base
    assert attn.to_v.weight.untyped_storage().data_ptr() == attn.stacked.untyped_storage().data_ptr()


def test_half_precision_stays_near() -> None:
    plain = plain_unet()
    inputs = told(plain, "image-to-video", 2, preset("tiny").num_frames)
    expected = answer(plain, inputs)
    half = copy.deepcopy(plain).to(torch.bfloat16)
    lean = copy.deepcopy(half)
    fuse(lean)
    cast = (inputs[0].bfloat16(), inputs[1], inputs[2].bfloat16(), inputs[3])
    unmodified = relative_difference(answer(half, cast).float(), expected)
    assert relative_difference(answer(lean, cast).float(), expected) < 1.5 * unmodified + 1e-3


def _decoded(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    with torch.inference_mode():
        frames: Tensor = vae.decode(latents, num_frames=len(latents)).sample
    return frames


@pytest.mark.parametrize("frames", [1, 3])
def test_the_decoder_keeps_its_numbers(frames: int) -> None:
    torch.manual_seed(0)
    plain = build_vae(preset("tiny")).eval().requires_grad_(False)
    for key, value in plain.named_parameters():
        if key.endswith("mix_factor"):
            value.data.normal_()
    lean = copy.deepcopy(plain)
    assert fuse(lean) > 0
    latents = torch.randn(frames, 4, 8, 8)
    assert relative_difference(_decoded(lean, latents), _decoded(plain, latents)) < TOLERANCE
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        modes = [vae.encode(pixels).latent_dist.mode() for vae in (lean, plain)]
    assert relative_difference(*modes) < TOLERANCE


def test_a_feed_forward_is_split_where_its_numbers_could_not_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: in one piece below the bound, in pieces that keep to it above, with the same numbers."""
    unet = plain_unet()
    inputs = told(unet, "image-to-video", 2, 3)
    fuse(unet)
    monkeypatch.setattr(fused_blocks, "_by_parts", lambda _: False)
    whole = answer(unet, inputs)
    sizes: list[int] = []
    geglu = fused_blocks._geglu

    def counted(layer: object, x: Tensor) -> Tensor:
        sizes.append(x.numel() // x.shape[-1] * layer.net[0].proj.out_features)  # type: ignore[attr-defined]
        return geglu(layer, x)

    monkeypatch.setattr(fused_blocks, "_geglu", counted)
    answer(unet, inputs)
    calls, largest = len(sizes), max(sizes)
    sizes.clear()
    monkeypatch.setattr(fused_blocks, "MAX_ELEMENTS", largest // 3)
    assert relative_difference(answer(unet, inputs), whole) < 1e-5
    assert max(sizes) <= largest // 3
    assert len(sizes) > calls
