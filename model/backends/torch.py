"""The torch backend: the UNet as it was loaded, on the CPU or a CUDA device, in the dtype of its weights.

Batch-invariant on a CPU: the slots of a call run side by side, each on half of the cores. That uses the cores better
than one slot after another with every operation split over all of them (measured on two cores with the mini
checkpoint: 0.46 s against 0.60 s for two slots). And the number of threads of a slot never changes, so its bits do not
depend on the batch: with another number a sum is taken in another order, and a few steps of a trained network made
1e-6 of that into 5e-3. The price is a lone slot, which has half of the cores only (0.41 s instead of 0.27 s).

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CpuThreads, DenoiserInputs


class TorchDenoiser:
    """A Denoiser (model.denoiser) around a diffusers UNet; runs in inference mode."""

    def __init__(self, unet: UNetSpatioTemporalConditionModel, cores: CpuThreads) -> None:
        self._unet = unet.eval()
        self._cores = cores
        on_cpu = unet.device.type == "cpu"
        self._pool = ThreadPoolExecutor(cores.count // cores.half, "stillmotion-unet") if on_cpu else None

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        if self._pool is None:
            return call_unet(self._unet, inputs)
        return torch.cat(list(self._pool.map(self._run_slot, inputs.split(1))))

    def _run_slot(self, inputs: DenoiserInputs) -> Tensor:
        torch.set_num_threads(self._cores.half)  # torch keeps the number of threads of an operation per calling thread
        return call_unet(self._unet, inputs)


def call_unet(unet: UNetSpatioTemporalConditionModel, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
    """The UNet's output in float32, in inference mode.

    The embeddings of timestep and vector start in float32 whatever the weights' dtype.
    """
    dtype = unet.dtype
    with torch.inference_mode():
        output: Tensor = unet(
            torch.cat([inputs.latents, inputs.concat], dim=2).to(dtype),
            inputs.timestep,
            encoder_hidden_states=inputs.context.to(dtype),
            added_time_ids=inputs.vector,
            return_dict=False,
        )[0]
    return output.float()
