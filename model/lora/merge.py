"""LoRA switching by merging: the weights carry one LoRA, another or none for the next denoiser call.

The weights are merged in place, W = W0 + scale * alpha / r * B A (Hu et al. 2021), before a call whose rows use another
LoRA than the call before. The other way, a side path x -> B A x in every layer, would be two more products in each of
them for every call, and would go around the one product for queries, keys and values (model.optimized.fused_blocks) and
the compiled blocks. Merging costs once a switch, and little: the four projections of temporal attention are a thirtieth
of svd-xt's weights, and the rank is small. So a call with a LoRA costs what a call without one does.

It is exact: every merge starts from a copy W0 of the weights as they were loaded, never from the merge before, so what
a call computes does not depend on the calls before it; and a call without a LoRA has W0 itself, bit for bit. Merged
numbers are rounded once, to the weights' dtype. Rows of two LoRAs, or of two strengths, differ in their BatchKey, so
they never share a call; model.sampling.sampler holds that, and sets the LoRA before each call.

It works where torch reads its weights anew at every call (LORA_BACKENDS in model.backends.registry): eager, compiled,
and replayed as CUDA graphs, since a switch writes numbers into tensors that stay where they are. Nothing is compiled
or recorded again (tests/unit/model/backends/test_compiled.py, tests/unit/model/lora/test_merge.py).

Legend: B batch slots, T frames, C latent channels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.denoiser import CachedFeatures, Denoiser, DenoiserInputs, caching
from model.errors import InvalidRequest
from model.lora.catalog import LoraUse
from model.lora.weights import Lora, adaptable_layers


class LoraDenoiser:
    """An AdaptableDenoiser (model.denoiser) around a denoiser in torch, for use by one thread.

    It is a CachingDenoiser where the inner one is: features belong to a row, and a row has one LoRA from end to end.

    Args:
        inner: runs `unet`.
        unet: on its device and in its dtype for good.
        loras: those it can apply, by name.
    """

    def __init__(self, inner: Denoiser, unet: Any, loras: Mapping[str, Lora]) -> None:
        self._inner = inner
        self._caching = caching(inner)
        self._loras = dict(loras)
        touched = {name for lora in loras.values() for name in lora.pairs}
        weights = {name: layer.weight for name, layer in adaptable_layers(unet).items() if name in touched}
        self._weights = weights
        with torch.inference_mode():
            self._plain = {name: weight.detach().clone() for name, weight in weights.items()}
        self._active: LoraUse | None = None
        self._clean = True
        """Whether the weights are those of `_active`: not during a merge, nor after one that ran out of memory."""

    def set_lora(self, lora: LoraUse | None) -> None:
        """See AdaptableDenoiser; None restores the plain weights.

        Raises:
            InvalidRequest: it is not among those that were loaded.
        """
        if lora == self._active and self._clean:
            return
        loaded = None if lora is None else self._loras.get(lora.name)
        if lora is not None and (loaded is None or loaded.entry.version != lora.version):
            raise InvalidRequest(
                f"the LoRA {lora.name}@{lora.version} is not loaded here", code="lora_not_found", param="lora"
            )
        self._clean = False
        with torch.inference_mode():
            for name, weight in self._weights.items():
                if loaded is None or lora is None or name not in loaded.pairs:
                    weight.copy_(self._plain[name])
                    continue
                down, up = loaded.pairs[name]
                weight.copy_((up @ down).mul_(loaded.scaling * lora.scale).add_(self._plain[name]))
        self._active, self._clean = lora, True

    def __call__(self, inputs: DenoiserInputs) -> Float[Tensor, "B T C h w"]:
        """See Denoiser."""
        return self._inner(inputs)

    @property
    def caches_features(self) -> bool:
        """Whether the inner denoiser caches deep features."""
        return self._caching is not None

    def run_with_cache(
        self, inputs: DenoiserInputs, cache: Sequence[CachedFeatures | None], slots: Sequence[int]
    ) -> tuple[Float[Tensor, "B T C h w"], list[CachedFeatures]]:
        """See CachingDenoiser; only where `caches_features`."""
        assert self._caching is not None
        return self._caching.run_with_cache(inputs, cache, slots)


def with_loras(inner: Denoiser, unet: Any, loras: Mapping[str, Lora]) -> Denoiser:
    """The denoiser, able to apply these; itself where there are none."""
    return LoraDenoiser(inner, unet, loras) if loras else inner


def switching_bytes(unet: Any, loras: Mapping[str, Lora]) -> int:
    """What `with_loras` keeps on the device besides the network: the plain weights' copies, and the LoRAs."""
    touched = {name for lora in loras.values() for name in lora.pairs}
    plain = sum(layer.weight.nbytes for name, layer in adaptable_layers(unet).items() if name in touched)
    return int(plain) + sum(lora.bytes for lora in loras.values())
