"""Classifier-free guidance in parallel (xDiT: cfg parallel): the two halves of a denoiser call on two devices at once.

A guided request takes two batch slots, with and without its conditions, that do not depend on each other until their
outputs are combined. With the network on two devices each computes one of them, so that a step takes about half of its
time; what crosses between the devices is latents, not activations. Calls of several requests are halved likewise.
Tested with two copies on a CPU; not yet run on two GPUs.

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import Denoiser, DenoiserInputs, apply_lora
from model.lora.catalog import LoraUse


class CfgParallelDenoiser:
    """A Denoiser (model.denoiser) of two, each with the same network on a device of its own. Of one thread.

    Args:
        first: on the device where the inputs are; computes the first half of the slots, and a lone slot.
        second: on `device`.
    """

    def __init__(self, first: Denoiser, second: Denoiser, device: torch.device) -> None:
        self._first = first
        self._second = second
        self._device = device
        self._pool = ThreadPoolExecutor(1, "stillmotion-cfg")

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        if inputs.batch_size < 2:
            return self._first(inputs)
        later = inputs.batch_size // 2
        own, others = inputs.split([inputs.batch_size - later, later])
        # Copies are made by this thread, whose streams are those that wrote the inputs and will read the outputs.
        pending = self._pool.submit(self._run_second, others.to(self._device))
        output = self._first(own)
        return torch.cat([output, pending.result().to(output.device)])

    def set_lora(self, lora: LoraUse | None) -> None:
        """See AdaptableDenoiser; on both devices."""
        for denoiser in (self._first, self._second):
            apply_lora(denoiser, lora)

    def _run_second(self, inputs: DenoiserInputs) -> Tensor:
        with _on(self._device):  # kernels in Triton are launched on the current device
            return self._second(inputs)


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
