"""Denoisers around another one: calls of a fixed or a bounded batch size, and guidance on two devices at once.

`FixedBatchDenoiser` makes a GPU backend batch-invariant: kernels are chosen by the batch size, so at one batch size and
with pinned kernels a slot's result does not depend on the others (DESIGN, Identity). `MaxBatchDenoiser` bounds what a
call takes in memory.

`CfgParallelDenoiser` is classifier-free guidance in parallel (xDiT: cfg parallel): the two halves of a denoiser call on
two devices at once. A guided request takes two batch slots, with and without its conditions, that do not depend on each
other until their outputs are combined. With the network on two devices each computes one of them, so that a step takes
about half of its time; what crosses between the devices is latents, not activations. Calls of several requests are
halved likewise.
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


class FixedBatchDenoiser:
    """A Denoiser (model.denoiser) around another, called with exactly `batch_size` slots each time.

    Shorter calls are padded with their last slot, longer ones are split.
    """

    def __init__(self, inner: Denoiser, batch_size: int) -> None:
        self._inner = inner
        self._batch_size = batch_size
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        return torch.cat([self._run_padded(group) for group in inputs.split(self._batch_size)])

    def _run_padded(self, inputs: DenoiserInputs) -> Tensor:
        count = inputs.batch_size
        slots = torch.arange(self._batch_size, device=inputs.latents.device).clamp(max=count - 1)
        return self._inner(inputs.index(slots))[:count]


class MaxBatchDenoiser:
    """A Denoiser (model.denoiser) around another, called with at most `max_batch_size` slots."""

    def __init__(self, inner: Denoiser, max_batch_size: int) -> None:
        self._inner = inner
        self._max_batch_size = max_batch_size

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        return torch.cat([self._inner(group) for group in inputs.split(self._max_batch_size)])


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
