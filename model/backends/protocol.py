"""What a denoiser backend is: one call.

Legend: B places in the batch, T frames, C latent channels, K concatenated condition channels, N context tokens, D their
width, V vector scalars; h, w latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cores:
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
