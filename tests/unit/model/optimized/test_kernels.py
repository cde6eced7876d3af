"""Triton kernels against float64, through the interpreter where there is no GPU; and the networks made of them.

Cases and references are those of benchmarks.kernels, whose table RESULTS.md shows.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.kernels import BOUNDS, CASES, DTYPES, Case, worst
from model.errors import InvalidRequest
from model.optimized import kernel_blocks
from model.optimized.attention import scaled_dot_product
from model.optimized.fused_blocks import fuse
from model.optimized.kernels import library
from model.optimized.kernels.block_ops import NAMES, BlockOps
from model.optimized.rewrites import relative_difference
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _marked(case: Case) -> Any:
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [_marked(case) for case in CASES])
def test_a_kernel_is_as_near_to_float64_as_its_dtype_allows(case: Case, dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    assert worst(case, dtype, DEVICE) < BOUNDS[dtype]


def test_operations_can_be_traced_without_numbers() -> None:
    with torch.device("meta"):
        x, weight = torch.empty(2, 6, 8), torch.empty(8)
        assert library.group_norm(x, weight, weight, 2, 1e-5, True).shape == x.shape
        added, out = library.add_layer_norm(x[0], x[1], weight, weight, 1e-5)
        assert added.shape == out.shape == (6, 8)
        assert library.geglu(x[0]).shape == (6, 4)
        assert library.add_lerp(x, x, x, torch.empty(())).shape == x.shape
        assert library.temporal_attention(torch.empty(2, 3, 5, 24), 2).shape == (2, 3, 5, 8)


def test_a_kernel_of_no_name_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no kernel is called 'gelu'"):
        BlockOps(["gelu"])


def random_blends(network: nn.Module) -> None:
    for key, value in network.named_parameters():
        if key.endswith("mix_factor"):
            value.data.normal_()


def called(unet: Any, name: str, rows: int, frames: int, side: int) -> Tensor:
    g = torch.Generator().manual_seed(rows)
    spec = task(name)
    sample = torch.randn(rows, frames, unet.config["in_channels"], side, side, generator=g)
    context = torch.randn(rows, spec.context_tokens, 32, generator=g)
    vector = torch.rand(rows, len(spec.vector), generator=g)
    with torch.inference_mode():
        output: Tensor = unet(sample, torch.linspace(-1, 1, rows), context, added_time_ids=vector, return_dict=False)[0]
    return output


class Plain:
    """The library's operations as torch's, and how often each was called: what the kernels are is tested above."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, int] = {}
        self._ops = BlockOps(())
        for name in ("group_norm", "add_layer_norm", "geglu", "add_lerp", "temporal_attention"):
            monkeypatch.setattr(library, name, self._counted(name))

    def _counted(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return getattr(self, name)(*args)

        return call

    def group_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, *more: Any
    ) -> Tensor:
        extra, span = more
        norm = nn.GroupNorm(groups, len(weight), eps)
        norm.weight, norm.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        return self._ops.group_norm(x, norm, silu=silu, extra=extra, span=span)

    def add_layer_norm(self, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float, *more: Any) -> Any:
        extra, span, stored = more
        norm = nn.LayerNorm(len(weight), eps)
        norm.weight, norm.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        return self._ops.add_layer_norm(x, y, norm, extra=extra, span=span, store_extra=stored)

    def geglu(self, x: Tensor) -> Tensor:
        return self._ops.geglu(x)

    def add_lerp(self, start: Tensor, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        return self._ops.add_lerp(start, x, y, share)

    def temporal_attention(self, projected: Tensor, heads: int) -> Tensor:
        return self._ops.temporal_attention(projected, heads, scaled_dot_product).contiguous()


@pytest.mark.parametrize("name", ["image-to-video", "text-to-video"])  # one token of context, and many
@pytest.mark.parametrize("kernels", [pytest.param((), marks=pytest.mark.slow), NAMES], ids=["torch", "kernels"])
def test_chains_of_operations_are_the_unmodified_denoiser(
    name: str, kernels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = build_unet(preset("tiny"), task(name)).eval().requires_grad_(False)
    random_blends(plain)
    ours, library_ = copy.deepcopy(plain), Plain(monkeypatch)
    fuse(ours, ops=BlockOps(kernels))
    assert set(ours.state_dict()) == set(plain.state_dict())
    for rows, frames, side in ((2, preset("tiny").num_frames, 8), (1, 1, 7)):
        expected = called(plain, name, rows, frames, side)
        assert relative_difference(called(ours, name, rows, frames, side), expected) < 1e-5
    assert bool(library_.calls) == bool(kernels)


@pytest.mark.parametrize("kernels", [(), NAMES], ids=["torch", "kernels"])
@pytest.mark.parametrize("frames", [1, 3])
def test_chains_of_operations_are_the_unmodified_decoder(
    frames: int, kernels: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = build_vae(preset("tiny")).eval().requires_grad_(False)
    random_blends(plain)
    ours, latents, pixels = copy.deepcopy(plain), torch.randn(frames, 4, 8, 8), torch.randn(1, 3, 64, 64)
    Plain(monkeypatch)
    fuse(ours, ops=BlockOps(kernels))
    with torch.inference_mode():
        decoded = [vae.decode(latents, num_frames=frames).sample for vae in (ours, plain)]
        encoded = [vae.encode(pixels).latent_dist.mode() for vae in (ours, plain)]
    assert relative_difference(*decoded) < 1e-5
    assert relative_difference(*encoded) < 1e-5


def test_attention_by_matrix_products_is_attention() -> None:
    query, key, value = (torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    expected = scaled_dot_product(query[:, None], key[:, None], value[:, None])[:, 0]
    assert relative_difference(kernel_blocks.attend_by_products(query, key, value), expected) < 1e-6


def test_a_feed_forward_is_split_where_its_numbers_could_not_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    unet = build_unet(preset("tiny"), task("image-to-video")).eval().requires_grad_(False)
    fuse(unet, ops=BlockOps(()))
    expected = called(unet, "image-to-video", 2, 3, 8)
    sizes: list[int] = []
    gate = BlockOps.geglu

    def counted(ops: BlockOps, wide: Tensor) -> Tensor:
        sizes.append(wide.numel())
        return gate(ops, wide)

    monkeypatch.setattr(BlockOps, "geglu", counted)
    monkeypatch.setattr(kernel_blocks, "MAX_ELEMENTS", 4096)
    assert relative_difference(called(unet, "image-to-video", 2, 3, 8), expected) < 1e-5
    assert max(sizes) <= 4096
