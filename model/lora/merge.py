"""A denoiser with a LoRA in its weights, another or none for the next call.

The weights are merged in place, W = W0 + scale * alpha / r * B A, before a call whose rows want another LoRA than the
call before. The other way, a side path x -> B A x in every layer, would be two more products in each of them for every
call, and would go around the one product for queries, keys and values (model.optimized.fused_blocks) and the
compiled blocks. Merging
costs once a switch, and little: the four projections of temporal attention are a thirtieth of svd-xt's weights, and
the rank is small. So a call with a LoRA costs what a call without one does.

It is exact: every merge starts from a copy W0 of the weights as they were loaded, never from the merge before, so what
a call computes does not depend on the calls before it; and a call without a LoRA has W0 itself, bit for bit. Merged
numbers are rounded once, to the weights' dtype. Rows of two LoRAs, or of two strengths, differ in their BatchKey, so
they never share a call; model.sampling.sampler holds that, and tells the denoiser which one is meant.

It works where torch reads its weights anew at every call (LORA_BACKENDS in model.backends.registry).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CachedFeatures, Denoiser, ReusingDenoiser
from model.errors import InvalidRequest
from model.lora.catalog import LoraUse
from model.lora.weights import Lora, temporal_projections


class AdaptedDenoiser:
    """An AdaptableDenoiser (model.denoiser) around a denoiser in torch. Of one thread.

    Args:
        inner: runs `unet`.
        unet: where it is to stay, in the dtype it is to have.
        loras: those it can apply, by name.
    """

    def __init__(self, inner: Denoiser, unet: Any, loras: Mapping[str, Lora]) -> None:
        self._inner = inner
        self._loras = dict(loras)
        touched = {name for lora in loras.values() for name in lora.pairs}
        weights = {name: layer.weight for name, layer in temporal_projections(unet).items() if name in touched}
        self._weights = weights
        with torch.inference_mode():
            self._plain = {name: weight.detach().clone() for name, weight in weights.items()}
        self._now: LoraUse | None = None
        self._whole = True
        """Whether the weights are those of `_now`: not while they change, nor after a change that memory broke off."""

    def adapt(self, wanted: LoraUse | None) -> None:
        """Have the weights of this LoRA, or the plain ones, from the next call on.

        Raises:
            InvalidRequest: it is not among those that were loaded.
        """
        if wanted == self._now and self._whole:
            return
        lora = None if wanted is None else self._loras.get(wanted.name)
        if wanted is not None and (lora is None or lora.entry.version != wanted.version):
            raise InvalidRequest(
                f"the LoRA {wanted.name}@{wanted.version} is not loaded here", code="lora_not_found", param="lora"
            )
        self._whole = False
        with torch.inference_mode():
            for name, weight in self._weights.items():
                if lora is None or wanted is None or name not in lora.pairs:
                    weight.copy_(self._plain[name])
                    continue
                down, up = lora.pairs[name]
                weight.copy_((up @ down).mul_(lora.scaling * wanted.scale).add_(self._plain[name]))
        self._now, self._whole = wanted, True

    def __call__(
        self,
        latents: Float[Tensor, "B T C h w"],
        timestep: Float[Tensor, " B"],
        context: Float[Tensor, "B N D"],
        concat: Float[Tensor, "B T K h w"],
        vector: Float[Tensor, "B V"],
    ) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        return self._inner(latents, timestep, context, concat, vector)


class AdaptedReuse(AdaptedDenoiser):
    """The same around a ReusingDenoiser: features belong to a row, and a row has one LoRA from end to end."""

    def __init__(self, inner: ReusingDenoiser, unet: Any, loras: Mapping[str, Lora]) -> None:
        super().__init__(inner, unet, loras)
        self._reusing = inner

    def reusing(
        self, inputs: tuple[Tensor, ...], kept: Sequence[CachedFeatures | None], places: Sequence[int]
    ) -> tuple[Float[Tensor, "B T C h w"], list[CachedFeatures]]:
        """See ReusingDenoiser."""
        return self._reusing.reusing(inputs, kept, places)


def with_loras(inner: Denoiser, unet: Any, loras: Mapping[str, Lora]) -> Denoiser:
    """The denoiser, able to apply these; itself where there are none."""
    if not loras:
        return inner
    if isinstance(inner, ReusingDenoiser):
        return AdaptedReuse(inner, unet, loras)
    return AdaptedDenoiser(inner, unet, loras)


def switching_bytes(unet: Any, loras: Mapping[str, Lora]) -> int:
    """What `with_loras` keeps on the device besides the network: the plain weights' copies, and the LoRAs."""
    touched = {name for lora in loras.values() for name in lora.pairs}
    plain = sum(layer.weight.nbytes for name, layer in temporal_projections(unet).items() if name in touched)
    return int(plain) + sum(lora.bytes for lora in loras.values())
