"""The denoiser: one batched network call on `DenoiserInputs`, and what a request conditions it on.

A backend (model.backends) implements the protocol `Denoiser`; the sampler calls it. Two optional protocols extend it:
LoRAs (`AdaptableDenoiser`) and deep features cached between calls (`CachingDenoiser`). `TorchDenoiser` is the plain
implementation that all others are compared with: the UNet as it was loaded, in the dtype of its weights.

Legend: B batch slots, T frames, C latent channels, K concatenated condition channels, N context tokens, D their width,
V vector scalars; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor

from model.errors import InvalidRequest
from model.lora.catalog import LoraUse


@dataclass(frozen=True, slots=True)
class CpuThreads:
    """The part of a CPU a denoiser may use; a GPU backend has no use for it.

    Args:
        count: threads at work at once.
        pinned: batch-invariant: a slot's bits do not depend on what else is in its call.
    """

    count: int
    pinned: bool = False

    @property
    def half(self) -> int:
        """Half of the threads, at least one: the share of each of two slots that run side by side."""
        return max(1, self.count // 2)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a denoiser is to work. Attention and reuse are for those that run in torch; the others take the default only.

    Args:
        attention: a kernel's name (model.optimized.attention), or `auto`: torch's own choice on a CPU and where
            pinned, else the fastest as measured on the device.
        reuse_every: evaluations for which deep features serve (model.optimized.feature_cache); 1 reuses none.
        kernels: of what is between matrix products on a GPU (model.optimized.kernels): names with commas, `none`, or
            `auto`: those that are faster than torch's own operations, as measured on the device.
        device: as requested; torch has the checkpoint's own, and OpenVINO runs on Intel's devices too: xpu, npu.
        fp8: whether large matrix products are in 8-bit floats (model.optimized.fp8).
    """

    attention: str = "auto"
    reuse_every: int = 1
    kernels: str = "auto"
    device: str = "cpu"
    fp8: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """A request's conditioning inputs: one batch slot's, without the noisy latents and their noise level.

    Args:
        context: cross-attention tokens.
        concat: latents concatenated to the noisy ones, frame by frame; K may be 0.
        vector: scalars embedded beside the timestep.
    """

    context: Float[Tensor, "N D"]
    concat: Float[Tensor, "T K h w"]
    vector: Float[Tensor, " V"]

    def unconditional(self) -> Conditioning:
        """For the unconditional pass: both image paths zeroed, the vector kept (as the published models do)."""
        return Conditioning(torch.zeros_like(self.context), torch.zeros_like(self.concat), self.vector)


@dataclass(frozen=True, slots=True, eq=False)
class DenoiserInputs:
    """The inputs of one denoiser call, one entry a batch slot.

    Args:
        latents: noisy latents, multiplied by c_in.
        timestep: c_noise of each slot: slots may be at different noise levels.
        context: cross-attention tokens.
        concat: what is concatenated to the latents' channels; K may be 0.
        vector: scalars embedded beside the timestep, such as fps - 1, motion bucket, noise augmentation.
    """

    latents: Float[Tensor, "B T C h w"]
    timestep: Float[Tensor, " B"]
    context: Float[Tensor, "B N D"]
    concat: Float[Tensor, "B T K h w"]
    vector: Float[Tensor, "B V"]

    @classmethod
    def stack(
        cls,
        latents: Sequence[Float[Tensor, "T C h w"]],
        timestep: Sequence[Float[Tensor, ""]],
        conditioning: Sequence[Conditioning],
    ) -> DenoiserInputs:
        """One slot for each of the latents."""
        return cls(
            torch.stack(list(latents)),
            torch.stack(list(timestep)),
            torch.stack([slot.context for slot in conditioning]),
            torch.stack([slot.concat for slot in conditioning]),
            torch.stack([slot.vector for slot in conditioning]),
        )

    @classmethod
    def cat(cls, parts: Iterable[DenoiserInputs]) -> DenoiserInputs:
        """The slots of several calls, in order, as one call."""
        return cls(*map(torch.cat, zip(*(part.as_tuple() for part in parts), strict=True)))

    @property
    def batch_size(self) -> int:
        """B."""
        return len(self.latents)

    def as_tuple(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The tensors in the order of the fields."""
        return self.latents, self.timestep, self.context, self.concat, self.vector

    def as_dict(self) -> dict[str, Tensor]:
        """The tensors by the fields' names, which are also the input names of an exported graph."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self, function: Callable[[Tensor], Tensor]) -> DenoiserInputs:
        """The function applied to each tensor."""
        return DenoiserInputs(*map(function, self.as_tuple()))

    def split(self, sizes: int | Sequence[int]) -> list[DenoiserInputs]:
        """Calls of at most so many slots, or of these sizes, as torch.split has it."""
        lengths = sizes if isinstance(sizes, int) else list(sizes)
        return [DenoiserInputs(*part) for part in zip(*(one.split(lengths) for one in self.as_tuple()), strict=True)]

    def index(self, slots: Tensor | slice) -> DenoiserInputs:
        """These slots; one may be taken more than once."""
        return self.map(lambda tensor: tensor[slots])

    def to(self, device: torch.device) -> DenoiserInputs:
        """On the device."""
        return self.map(lambda tensor: tensor.to(device))


@runtime_checkable
class Denoiser(Protocol):
    """F of EDM's equation 7 (Karras et al. 2022): the bare network, without preconditioning or guidance."""

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """The network's output, float32, for inputs in float32 on the denoiser's device."""
        ...


@runtime_checkable
class AdaptableDenoiser(Denoiser, Protocol):
    """A Denoiser that can apply LoRAs, one to a whole call."""

    def set_lora(self, lora: LoraUse | None) -> None:
        """Apply this LoRA from the next call on; None: none. Raises InvalidRequest for one that is not loaded."""
        ...


def apply_lora(denoiser: Denoiser, lora: LoraUse | None) -> None:
    """Have a denoiser apply this LoRA from its next call on; None: none.

    Raises:
        InvalidRequest: the denoiser applies none at all, or does not have this one loaded.
    """
    if isinstance(denoiser, AdaptableDenoiser):
        denoiser.set_lora(lora)
    elif lora is not None:
        raise InvalidRequest(
            f"this denoiser cannot apply the LoRA {lora.name!r}; serve the checkpoint with --denoiser torch",
            code="lora_unsupported",
            param="lora",
        )


@dataclass(frozen=True, slots=True, eq=False)
class CachedFeatures:
    """Deep features that a row carries from one evaluation to the next (DeepCache).

    Args:
        features: one for each batch slot the row took.
        age: evaluations that have used them since.
    """

    features: Tensor
    age: int


@runtime_checkable
class CachingDenoiser(Denoiser, Protocol):
    """A Denoiser that can skip its deep layers for rows with deep features of an evaluation before."""

    @property
    def caches_features(self) -> bool:
        """Whether it does; a wrapper answers for the denoiser inside it."""
        ...

    def run_with_cache(
        self, inputs: DenoiserInputs, cache: Sequence[CachedFeatures | None], slots: Sequence[int]
    ) -> tuple[Float[Tensor, "B T C h w"], list[CachedFeatures]]:
        """The output of every batch slot, and each row's features for its next evaluation.

        Args:
            cache: of each row; None before its first evaluation.
            slots: how many batch slots each row takes, in order.
        """
        ...


def caching(denoiser: Denoiser) -> CachingDenoiser | None:
    """The denoiser as one that caches features; None where it does not."""
    return denoiser if isinstance(denoiser, CachingDenoiser) and denoiser.caches_features else None


class TorchDenoiser:
    """The torch backend: diffusers' UNet as it was loaded, on the CPU or a CUDA device, in inference mode.

    Batch-invariant on a CPU: the slots of a call run side by side, each on half of the cores. That uses the cores
    better than one slot after another with every operation split over all of them (measured on two cores with the mini
    checkpoint: 0.46 s against 0.60 s for two slots). And the number of threads of a slot never changes, so its bits do
    not depend on the batch: with another number a sum is taken in another order, and a few steps of a trained network
    made 1e-6 of that into 5e-3. The price is a lone slot, which has half of the cores only (0.41 s instead of 0.27 s).
    """

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
