"""The torch backend: the UNet as it was loaded, on the CPU or a CUDA device, in the dtype of its weights.

On a CPU the places of a call run side by side, each on half of the cores: so they use the cores better than one after
another with every operation split over all of them (measured on two cores with the mini checkpoint: 0.46 s against
0.60 s for two places). And the number of threads of a place never changes, so that its bits do not know its company:
with another number a sum is taken in another order, and a few steps of a trained network made 1e-6 of that into 5e-3.
The price is a lone place, which has half of the cores only (0.41 s instead of 0.27 s).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CpuThreads


class TorchDenoiser:
    """A Denoiser (model.denoiser) around a diffusers UNet; runs in inference mode."""

    def __init__(self, unet: UNetSpatioTemporalConditionModel, cores: CpuThreads) -> None:
        self._unet = unet.eval()
        self._cores = cores
        on_cpu = unet.device.type == "cpu"
        self._pool = ThreadPoolExecutor(cores.count // cores.half, "stillmotion-unet") if on_cpu else None

    def __call__(
        self,
        latents: Float[Tensor, "B T C h w"],
        timestep: Float[Tensor, " B"],
        context: Float[Tensor, "B N D"],
        concat: Float[Tensor, "B T K h w"],
        vector: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B T C h w"]:
        """See Denoiser. The embeddings of timestep and vector start in float32 whatever the weights' dtype."""
        told = (latents, timestep, context, concat, vector)
        if self._pool is None:
            return self._run(*told)
        places = zip(*(part.split(1) for part in told), strict=True)
        return torch.cat(list(self._pool.map(lambda place: self._alone(*place), places)))

    def _alone(self, *place: Tensor) -> Tensor:
        torch.set_num_threads(self._cores.half)  # torch keeps the number of threads of an operation per calling thread
        return self._run(*place)

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
