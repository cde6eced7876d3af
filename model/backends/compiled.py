"""The torch-compiled backend: the UNet's repeated blocks through torch.compile, the rest as it is.

Blocks are compiled rather than the whole network: blocks of one width share their code, so the first call waits
minutes rather than tens of them. Places, height and width are symbols, each its own, so that another number of them
compiles nothing new; one place alone is a case of its own, as torch.compile has it. On a CPU the places of a call run
one after another, so there is only that.

Legend: B places, T frames, C latent channels, K concatenated channels, N context tokens, D their width, V vector
scalars; h, w latent.
"""

from __future__ import annotations

import os
import shutil

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from model.denoiser import CpuThreads
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

    def __call__(
        self,
        latents: Float[Tensor, "B T C h w"],
        timestep: Float[Tensor, " B"],
        context: Float[Tensor, "B N D"],
        concat: Float[Tensor, "B T K h w"],
        vector: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. Pinned, and on a CPU, each place is a call of its own, so its bits do not know its company."""
        told = (latents, timestep, context, concat, vector)
        if not self._one_by_one:
            return self._run(*told)
        places = zip(*(part.split(1) for part in told), strict=True)
        return torch.cat([self._run(*place) for place in places])

    def _run(self, latents: Tensor, timestep: Tensor, context: Tensor, concat: Tensor, vector: Tensor) -> Tensor:
        dtype = self._unet.dtype
        with torch.inference_mode():
            output: Tensor = self._unet(
                torch.cat([latents, concat], dim=2).to(dtype),
                timestep,
                encoder_hidden_states=context.to(dtype),
                added_time_ids=vector,
                return_dict=False,
            )[0]
        return output.float()


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compile every fused block in place, when it is first called; returns how many.

    Args:
        backend: of torch.compile; `eager` traces and compiles nothing.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    # Two sizes that happen to be equal at the first call (4 places, 4 heads) are not the same size.
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
    named = os.environ.get("CXX")
    wanted = [named] if named else ["g++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        raise InvalidRequest(
            f"torch-compiled needs a C++ compiler on a CPU, and there is no {' or '.join(wanted)}: install one "
            "(Debian, Ubuntu: apt install g++), or choose --denoiser torch",
            param="backend",
            code="missing_compiler",
        )
