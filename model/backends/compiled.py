"""The torch-compiled backend: regional torch.compile of the UNet's repeated blocks, the rest eager.

Blocks are compiled rather than the whole network: blocks of one width share their code, so the first call waits
minutes rather than tens of them. Batch size, height and width are dynamic, each its own symbol, so that another number
compiles nothing new; a batch of one is a case of its own, as torch.compile has it. On a CPU the slots of a call run
one after another, so there is only that.

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

import os
import shutil

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from model.denoiser import CpuThreads, DenoiserInputs, call_unet
from model.errors import InvalidRequest
from model.optimized.fused_blocks import FusedResBlock, FusedTransformer

VARIANTS = 128
"""Compiled forms of one block class, at most: one for each pair of widths it occurs in (svd-xt has about twenty)."""


class CompiledDenoiser:
    """A Denoiser (model.denoiser) around a UNet whose blocks (model.optimized.fused_blocks) are compiled, in place.

    Raises:
        InvalidRequest: the UNet is on a CPU, and there is no C++ compiler.
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel, cores: CpuThreads) -> None:
        require_compiler_on(unet.device)
        self._unet = unet.eval()
        self._one_by_one = cores.pinned or unet.device.type == "cpu"
        compile_blocks(unet)

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. Batch-invariant where pinned and on a CPU: each slot is a call of its own."""
        if not self._one_by_one:
            return call_unet(self._unet, inputs)
        return torch.cat([call_unet(self._unet, slot) for slot in inputs.split(1)])


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compile every fused block in place, when it is first called; returns how many.

    Args:
        backend: of torch.compile; `eager` traces and compiles nothing.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # Two sizes that happen to be equal at the first call (4 slots, 4 heads) are not the same size.
    torch.fx.experimental._config.use_duck_shape = False
    count = 0
    for block in network.modules():
        if isinstance(block, FusedResBlock | FusedTransformer):
            block.compile(dynamic=True, fullgraph=True, backend=backend)
            count += 1
    return count


def require_compiler_on(device: torch.device) -> None:
    """Raise InvalidRequest where torch.compile needs a C++ compiler (on a CPU) and finds none: $CXX, g++ or clang++."""
    if device.type != "cpu":
        return
    configured = os.environ.get("CXX")
    compilers = [configured] if configured else ["g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        raise InvalidRequest(
            f"torch-compiled needs a C++ compiler on a CPU, and there is no {' or '.join(compilers)}: install one "
            "(Debian, Ubuntu: apt install g++), or choose --denoiser torch",
            param="backend",
            code="missing_compiler",
        )
