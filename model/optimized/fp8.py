"""FP8: a fused denoiser's large matrix products in 8-bit floats (E4M3), quantized dynamically by torchao.

Weights are rounded once, with one scale an output channel; activations at every call, with one scale a token: the
largest magnitude of the row over 448, the largest number E4M3 holds (torchao's `Float8Tensor`, granularity `PerRow`).
No calibration is needed, and a token's rounding does not depend on what else is in its call. The products want widths
that are multiples of 16; these networks' are of 32, for their GroupNorms.

Quantized are the products over a clip's tokens: projections into and out of a transformer, self-attention's four, and
the feed-forward layers. Convolutions, the embeddings of noise level and labels with their projections, the frames'
position embeddings, and attention to the context stay as they are: they are small, or their rounding is seen.
Exports have FP8 of their own, with calibrated scales (`stillmotion export --fp8`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn

from model.errors import InvalidRequest, MissingExtra
from model.optimized.fused_blocks import FusedTransformer

CAPABILITY: Final = (8, 9)
"""Of the GPUs that multiply 8-bit floats: Ada, Hopper and later."""


def check_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a device that has no 8-bit matrix products, another dtype than bfloat16, or a missing torchao.

    Raises:
        InvalidRequest: of the first two, with what to do instead.
        MissingExtra: torchao is not installed.
    """
    if device.type != "cuda":
        here = "a CPU"
    elif (capability := torch.cuda.get_device_capability(device)) < CAPABILITY:
        here = f"{torch.cuda.get_device_name(device)} ({capability[0]}.{capability[1]})"
    else:
        here = None
    if here is not None:
        raise InvalidRequest(
            f"--fp8 needs an NVIDIA GPU of compute capability 8.9 or later (Ada, Hopper), and this is {here}: leave it "
            "out, or take another --device",
            param="fp8",
        )
    if dtype != torch.bfloat16:
        raise InvalidRequest("--fp8 multiplies what is in bfloat16: add --dtype bfloat16", param="fp8")
    float8_weight(torch.ones(16, 16))


def float8_weight(weight: Tensor) -> Tensor:
    """A weight [out, in] as torchao's 8-bit one: linear layers that have it quantize their inputs too.

    Raises:
        MissingExtra: torchao is not installed.
    """
    try:
        from torchao.float8.inference import Float8MMConfig
        from torchao.quantization import Float8Tensor, PerRow
        from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs
    except ModuleNotFoundError as error:
        raise MissingExtra("a denoiser in 8-bit floats", "fp8") from error
    product = Float8MMConfig(use_fast_accum=True)
    inputs = QuantizeTensorToFloat8Kwargs(granularity=PerRow(), mm_config=product)
    quantized: Tensor = Float8Tensor.from_hp(weight, granularity=PerRow(), mm_config=product, act_quant_kwargs=inputs)
    return quantized


def quantize_fp8(network: nn.Module, quantize: Callable[[Tensor], Tensor] = float8_weight) -> int:
    """Quantize a fused denoiser (model.optimized.fused_blocks) in place; returns how many weights were.

    The weights of queries, keys and values are dropped: their stacked one is what is read. So no LoRA can be merged
    into such a network.

    Raises:
        MissingExtra: torchao is not installed.
    """
    count = 0
    with torch.inference_mode(False), torch.no_grad():
        for layer in network.modules():
            if not isinstance(layer, FusedTransformer):
                continue
            for linear in _linears(layer):
                linear.weight = nn.Parameter(quantize(linear.weight.detach()), requires_grad=False)
                count += 1
            for attn in _self_attentions(layer):
                attn.stacked = quantize(attn.stacked.detach())
                for part in (attn.to_q, attn.to_k, attn.to_v):
                    part.weight = nn.Parameter(part.weight.new_empty(0, part.in_features), requires_grad=False)
                count += 1
    return count


def _blocks(layer: Any) -> Iterator[Any]:
    yield from layer.transformer_blocks
    yield from layer.temporal_transformer_blocks


def _self_attentions(layer: Any) -> Iterator[Any]:
    return (block.attn1 for block in _blocks(layer))


def _linears(layer: Any) -> Iterator[nn.Linear]:
    """Those over tokens, but for queries, keys and values, which are stacked."""
    yield layer.proj_in
    yield layer.proj_out
    for block in _blocks(layer):
        yield block.attn1.to_out[0]
        for forward in (getattr(block, "ff_in", None), block.ff):
            if forward is not None:
                yield forward.net[0].proj
                yield forward.net[2]
