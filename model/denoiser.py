"""What a denoiser backend is: one call.

Legend: B places in the batch, T frames, C latent channels, K concatenated condition channels, N context tokens, D their
width, V vector scalars; h, w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from model.lora.catalog import LoraUse


@dataclass(frozen=True, slots=True)
class CpuThreads:
    """The part of a CPU a denoiser may use; a GPU backend has no use for it.

    Args:
        count: threads at work at once.
        pinned: the same bits whatever a place shares its call with.
    """

    count: int
    pinned: bool = False

    @property
    def half(self) -> int:
        """Half of the threads, at least one: what each of two places has that run side by side."""
        return max(1, self.count // 2)


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How a denoiser that runs in torch is to work; the others take the default only.

    Args:
        attention: a kernel's name (model.optimized.attention), or `auto`: torch's own choice on a CPU and where
            pinned, else the fastest as measured on the device.
        reuse_every: evaluations for which deep features serve (model.optimized.feature_cache); 1 reuses none.
    """

    attention: str = "auto"
    reuse_every: int = 1


@runtime_checkable
class Denoiser(Protocol):
    """F of EDM's equation 7: the bare network, without preconditioning or guidance."""

    def __call__(
        self,
        latents: Float[Tensor, "B T C h w"],
        timestep: Float[Tensor, " B"],
        context: Float[Tensor, "B N D"],
        concat: Float[Tensor, "B T K h w"],
        vector: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B T C h w"]:
        """The network's output, float32, for inputs in float32 on the denoiser's device.

        Args:
            latents: noisy latents, multiplied by c_in.
            timestep: c_noise of each place: places may be at different noise levels.
            context: cross-attention tokens.
            concat: what is concatenated to the latents' channels.
            vector: scalars embedded beside the timestep, such as fps - 1, motion bucket, noise augmentation.
        """
        ...


@runtime_checkable
class AdaptableDenoiser(Denoiser, Protocol):
    """A Denoiser that can apply LoRAs, one to a whole call."""

    def adapt(self, wanted: LoraUse | None) -> None:
        """Apply this one from the next call on; None: none. Raises InvalidRequest for one that it does not have."""
        ...


@dataclass(frozen=True, slots=True)
class CachedFeatures:
    """What a row keeps of an evaluation for the next ones.

    Args:
        features: deep features of the network, one for each place the row took.
        age: evaluations that have used them since.
    """

    features: Tensor
    age: int


@runtime_checkable
class ReusingDenoiser(Denoiser, Protocol):
    """A Denoiser that can skip its deep layers where a row has kept what they gave at an evaluation before."""

    def reusing(
        self, inputs: tuple[Tensor, ...], kept: Sequence[CachedFeatures | None], places: Sequence[int]
    ) -> tuple[Float[Tensor, "B T C h w"], list[CachedFeatures]]:
        """The output at every place, and what each row keeps.

        Args:
            inputs: as `__call__` takes them.
            kept: of each row; None before its first evaluation.
            places: how many places each row takes, in order.
        """
        ...
