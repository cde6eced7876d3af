"""How much memory a network needs, found by running it on tensors that have shapes and no numbers.

A rehearsal on torch's meta device takes seconds for a network of any size, and no memory: every operation says what it
would allocate, and a ledger keeps the sum of what is alive. Attention counts as its output alone, since the kernels
used at size never hold the matrix of scores. What a kernel takes for itself meanwhile is not seen: model.vram allows
for it.

Legend: B places, T frames, C channels; h, w latent.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.fused import fuse
from model.shapes import LatentShape


class Ledger(TorchDispatchMode):
    """Bytes alive among the tensors made inside it, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and note what it made."""
        given = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf, given)
        return result

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        storage = _storage(tensor)
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


class _OutputOnly(TorchFunctionMode):
    """Attention as an allocation of its output."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, value = args[0], args[2]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes of tensors alive at once while `work` ran, at most, beyond those that were there before."""
    ledger = Ledger()
    with torch.inference_mode(), _OutputOnly(), ledger:
        kept = work()
        del kept
    return ledger.peak


def parameter_bytes(*networks: nn.Module) -> int:
    """Bytes of the networks' weights, each once."""
    weights = {weight.data_ptr() or id(weight): weight for net in networks for weight in net.parameters()}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def denoiser_bytes(unet: UNetSpatioTemporalConditionModel, latent: LatentShape, places: int) -> int:
    """What a denoiser call of `places` clips allocates at most, beside the weights."""
    shadow = _shadow(unet)
    fuse(shadow)
    config, dtype = unet.config, unet.dtype
    vector = int(config["projection_class_embeddings_input_dim"]) // int(config["addition_time_embed_dim"])
    with torch.device("meta"):
        sample = torch.empty(
            places, latent.num_frames, int(config["in_channels"]), latent.height, latent.width, dtype=dtype
        )
        told = (torch.empty(places), torch.empty(places, 1, int(config["cross_attention_dim"]), dtype=dtype))
        scalars = torch.empty(places, vector)
    return peak_bytes(lambda: shadow(sample, *told, added_time_ids=scalars, return_dict=False)[0].float())


def decoder_bytes(vae: AutoencoderKLTemporalDecoder, latent: LatentShape, chunk: int) -> int:
    """What decoding a chunk of frames allocates at most, beside the weights."""
    shadow = _shadow(vae)
    fuse(shadow)
    dtype = next(vae.decoder.parameters()).dtype
    with torch.device("meta"):
        plain = torch.empty(chunk, latent.channels, latent.height, latent.width, dtype=dtype)
    return peak_bytes(lambda: shadow.decode(plain, num_frames=chunk).sample.float())


def encoder_bytes(vae: AutoencoderKLTemporalDecoder, latent: LatentShape) -> int:
    """What encoding one picture allocates at most, beside the weights."""
    shadow = _shadow(vae)
    with torch.device("meta"):
        picture = torch.empty(1, 3, latent.height * 8, latent.width * 8, dtype=vae.dtype)
    return peak_bytes(lambda: shadow.encode(picture).latent_dist.mode())


def _shadow(network: Any) -> Any:
    """A network of the same configuration and dtypes, without numbers."""
    with torch.device("meta"):
        shadow = type(network).from_config(copy.deepcopy(dict(network.config)))
    shadow.to("meta")  # AlphaBlender's number is made on the CPU whatever the default
    for mine, theirs in zip(shadow.parameters(), network.parameters(), strict=True):
        mine.data = mine.data.to(theirs.dtype)
    return shadow.eval()
