"""VRAM planning: what stays on a GPU with little memory, the batch size of a call, and the frames of a decoded chunk.

From the most convenient way of working to the most careful one, `plan` takes the first whose computed peak fits the
budget. Weights are counted. Activations are measured by running the network on torch's meta device, which takes seconds
for a network of any size, and no memory: every operation says what it would allocate, and an AllocationTracker keeps
the sum of what is alive. Attention counts as its output alone, since the kernels used at size never hold the matrix of
scores. `SLACK_BYTES` and `SLACK_SHARE` are allowed on top for what is not measured: the driver's own, kernels'
workspaces, holes between allocations.

Legend: B batch slots, T frames, C channels; h, w latent.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from model.checkpoint import Checkpoint
from model.errors import InvalidRequest
from model.memory.tiled_decode import decode_in_strips
from model.optimized.fused_blocks import fuse
from model.optimized.kernels.block_ops import BlockOps
from model.shapes import LatentShape, even_chunks


class AllocationTracker(TorchDispatchMode):
    """Bytes alive among the tensors allocated inside it, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and note its new tensors."""
        inputs = {_storage(leaf)._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf, inputs)
        return result

    def _note(self, tensor: Tensor, inputs: set[int]) -> None:
        storage = _storage(tensor)
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in inputs:
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


class AttentionReplaced(TorchFunctionMode):
    """Within it, `attend` takes the place of attention: the meta device has no fused kernel of its own, GPUs have.

    Args:
        attend: of query, key and value.
    """

    def __init__(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._attend = attend

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the function, or the replacement."""
        if func is F.scaled_dot_product_attention:
            return self._attend(*args[:3])
        return func(*args, **(kwargs or {}))


def _output_only(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention as an allocation of its output."""
    del key
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes of tensors alive at once while `work` ran, at most, beyond those that were there before."""
    tracker = AllocationTracker()
    with torch.inference_mode(), AttentionReplaced(_output_only), tracker:
        result = work()
        del result
    return tracker.peak


def parameter_bytes(*networks: nn.Module) -> int:
    """Bytes of the networks' weights, each once."""
    weights = {weight.data_ptr() or id(weight): weight for net in networks for weight in net.parameters()}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


def denoise_on_meta(
    unet: UNetSpatioTemporalConditionModel, latent: LatentShape, batch_size: int
) -> Callable[[], object]:
    """A denoiser call of `batch_size` clips on the meta device, to be counted."""
    shadow = _shadow(unet)
    fuse(shadow, ops=BlockOps())
    config, dtype = unet.config, unet.dtype
    vector = int(config["projection_class_embeddings_input_dim"]) // int(config["addition_time_embed_dim"])
    with torch.device("meta"):
        sample = torch.empty(
            batch_size, latent.num_frames, int(config["in_channels"]), latent.height, latent.width, dtype=dtype
        )
        context = torch.empty(batch_size, 1, int(config["cross_attention_dim"]), dtype=dtype)
        timesteps, scalars = torch.empty(batch_size), torch.empty(batch_size, vector)
    return lambda: shadow(sample, timesteps, context, added_time_ids=scalars, return_dict=False)[0].float()


def decode_on_meta(vae: AutoencoderKLTemporalDecoder, latent: LatentShape, chunk: int) -> Callable[[], object]:
    """The decoding of a chunk of frames on the meta device, to be counted."""
    shadow = _shadow(vae)
    fuse(shadow, ops=BlockOps())
    dtype = next(vae.decoder.parameters()).dtype
    with torch.device("meta"):
        plain = torch.empty(chunk, latent.channels, latent.height, latent.width, dtype=dtype)
    return lambda: shadow.decode(plain, num_frames=chunk).sample.float()


def denoiser_bytes(unet: UNetSpatioTemporalConditionModel, latent: LatentShape, batch_size: int) -> int:
    """What a denoiser call of `batch_size` clips allocates at most, beside the weights."""
    return peak_bytes(denoise_on_meta(unet, latent, batch_size))


def decoder_bytes(vae: AutoencoderKLTemporalDecoder, latent: LatentShape, chunk: int) -> int:
    """What decoding a chunk of frames allocates at most, beside the weights."""
    return peak_bytes(decode_on_meta(vae, latent, chunk))


def tiled_decoder_bytes(vae: AutoencoderKLTemporalDecoder, latent: LatentShape, chunk: int) -> int:
    """What decoding a chunk in strips allocates on the device at most, beside the weights."""
    shadow = _shadow(vae)
    dtype = next(vae.decoder.parameters()).dtype

    def in_the_host(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with _disable_current_modes():  # not the device's: not counted
            return torch.empty(shape, dtype=dtype, device="meta")

    with torch.device("meta"):
        plain = torch.empty(chunk, latent.channels, latent.height, latent.width, dtype=dtype)
        video = torch.zeros(1, chunk)
    return peak_bytes(lambda: decode_in_strips(shadow.decoder, plain, video, chunk, allocate=in_the_host).float())


def group_bytes(unet: UNetSpatioTemporalConditionModel) -> int:
    """Weights on the device at once where one block after another comes: the largest, and what is in no list."""
    shadow = _shadow(unet)
    fuse(shadow)  # whose stacked projections are copied beside what they are views of
    blocks, rest = [0], 0
    for child in shadow.children():
        if isinstance(child, nn.ModuleList):
            blocks += [_resident_bytes(block) for block in child]
        else:
            rest += _resident_bytes(child)
    return max(blocks) + rest


def _resident_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def encoder_bytes(vae: AutoencoderKLTemporalDecoder, latent: LatentShape) -> int:
    """What encoding one picture allocates at most, beside the weights."""
    shadow = _shadow(vae)
    with torch.device("meta"):
        picture = torch.empty(1, 3, latent.height * 8, latent.width * 8, dtype=vae.dtype)
    return peak_bytes(lambda: shadow.encode(picture).latent_dist.mode())


def _shadow(network: Any) -> Any:
    """A network of the same configuration and dtypes, without numbers; where weights were released too."""
    with torch.device("meta"):
        shadow = type(network).from_config(copy.deepcopy(dict(network.config)))
    shadow.to("meta")  # AlphaBlender's number is made on the CPU whatever the default
    dtypes, rest = {name: weight.dtype for name, weight in network.named_parameters()}, network.dtype
    for name, weight in shadow.named_parameters():
        weight.data = weight.data.to(dtypes.get(name, rest))
    return shadow.eval()


GIB = 2**30
SLACK_BYTES = int(0.8 * GIB)
"""Of a CUDA context and its libraries. An allowance, not a measurement."""
SLACK_SHARE = 1.15
"""Of activations: workspaces and holes. An allowance, not a measurement."""
LARGEST_BATCH = 8


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Bytes that a checkpoint's parts take on the device, at one clip size.

    Args:
        unet, vae, conditioners: weights.
        denoise: activations of a denoiser call, by batch size.
        decode: activations of a decoded chunk, by frames.
        encode: activations of encoding a picture.
        decode_tiled: activations of a chunk decoded in strips (model.memory.tiled_decode), by frames; None where the
            decoder cannot.
        unet_group: weights of the denoiser that are on the device at once with group offload; None where its backend
            cannot.
    """

    unet: int
    vae: int
    conditioners: int
    denoise: Callable[[int], int]
    decode: Callable[[int], int]
    encode: int
    decode_tiled: Callable[[int], int] | None = None
    unet_group: int | None = None


@dataclass(frozen=True, slots=True)
class VramPlan:
    """How to stay within a budget.

    Args:
        max_batch_size: of one denoiser call; below 2, the two slots of a guided request take a call each.
        decode_chunk: frames decoded at once, at most.
        offload: whether encoders and autoencoder are on the device only while they are used.
        peak_bytes: what this needs, as computed.
        tiled_decode: whether frames are decoded in strips.
        group_offload: whether the denoiser's blocks are on the device only while they are used.
    """

    max_batch_size: int
    decode_chunk: int
    offload: bool
    peak_bytes: int
    tiled_decode: bool = False
    group_offload: bool = False

    def as_dict(self) -> dict[str, object]:
        """JSON-ready, for a video manifest; its keys are as they were first written."""
        fields = asdict(self)
        return {"places": fields.pop("max_batch_size"), **fields}


def needs_of(checkpoint: Checkpoint, latent: LatentShape, *, can_group: bool = False) -> MemoryNeeds:
    """The needs of a checkpoint with weights or on the meta device (not of an export).

    Args:
        can_group: whether its backend can run a denoiser whose blocks come and go (model.memory.cpu_offload).
    """
    unet, vae, conditioners = checkpoint.unet, checkpoint.vae, checkpoint.conditioners
    encoder = conditioners.network
    return MemoryNeeds(
        unet=parameter_bytes(unet),
        vae=parameter_bytes(vae),
        conditioners=parameter_bytes(encoder),
        denoise=_in_proportion(lambda batch_size: denoiser_bytes(unet, latent, batch_size)),
        decode=cache(lambda chunk: decoder_bytes(vae, latent, chunk)),
        encode=encoder_bytes(vae, latent) if checkpoint.entry.task.pictures else 0,
        decode_tiled=cache(lambda chunk: tiled_decoder_bytes(vae, latent, chunk)),
        unet_group=group_bytes(unet) if can_group else None,
    )


def _in_proportion(measure: Callable[[int], int]) -> Callable[[int], int]:
    """A call of n slots needs n times what a call of one does."""
    one: list[int] = []

    def bytes_of(batch_size: int) -> int:
        if not one:
            one.append(measure(1))
        return one[0] * batch_size

    return bytes_of


def plan(needs: MemoryNeeds, budget_bytes: int, frames: int, *, requested_chunk: int, overlap: bool) -> VramPlan:
    """The most convenient way of working that fits.

    Args:
        frames: of the clip.
        requested_chunk: frames decoded at once where memory allows.
        overlap: whether chunks are decoded while another clip is denoised, as a service does.

    Raises:
        InvalidRequest: not even the most careful one fits.
    """
    smallest: VramPlan | None = None
    for candidate in _candidate_plans(needs, frames, requested_chunk):
        fitted = replace(candidate, peak_bytes=_peak(needs, candidate, overlap=overlap))
        if fitted.peak_bytes <= budget_bytes:
            return fitted
        smallest = fitted if smallest is None or fitted.peak_bytes < smallest.peak_bytes else smallest
    assert smallest is not None
    raise InvalidRequest(
        f"{budget_bytes / GIB:.1f} GiB are too little: with everything moved off the GPU that can be, it takes "
        f"{smallest.peak_bytes / GIB:.1f} GiB; give that much, a smaller clip, or --dtype float16",
        param="vram_budget",
        code="vram_budget",
    )


def _candidate_plans(needs: MemoryNeeds, frames: int, requested_chunk: int) -> Iterator[VramPlan]:
    """The most convenient first.

    Batches go first, then residence, then time (strips, a guided request's halves in turn, group offload), which all
    give the same video; smaller chunks, which do not, come last.
    """
    largest = max(even_chunks(frames, requested_chunk))
    batch_size = LARGEST_BATCH
    while batch_size > 2:
        yield VramPlan(batch_size, largest, False, 0)
        batch_size //= 2
    for offload in (False, True):
        yield VramPlan(2, largest, offload, 0)
    chunks = [largest]
    while chunks[-1] > 1:
        chunks.append((chunks[-1] + 1) // 2)
    if needs.decode_tiled is None:
        yield from (VramPlan(2, chunk, True, 0) for chunk in chunks[1:] if chunk > 1)
        yield from (VramPlan(1, chunk, True, 0) for chunk in chunks)
        return
    yield VramPlan(2, largest, True, 0, tiled_decode=True)
    for chunk in chunks:
        yield VramPlan(1, chunk, True, 0, tiled_decode=True)
        if needs.unet_group is not None:
            yield VramPlan(1, chunk, True, 0, tiled_decode=True, group_offload=True)


def _peak(needs: MemoryNeeds, way: VramPlan, *, overlap: bool) -> int:
    decode_bytes = needs.decode_tiled if way.tiled_decode and needs.decode_tiled is not None else needs.decode
    denoise = SLACK_SHARE * needs.denoise(way.max_batch_size)
    decode = SLACK_SHARE * decode_bytes(way.decode_chunk)
    encode = SLACK_SHARE * needs.encode
    resident = needs.conditioners + needs.vae
    visitors = (resident, 0, needs.vae) if way.offload else (resident,) * 3
    weights, group = (0, needs.unet_group) if way.group_offload and needs.unet_group is not None else (needs.unet, 0)
    phases = [visitors[0] + encode, visitors[1] + group + denoise, visitors[2] + decode]
    together = visitors[2] + group + denoise + decode if overlap else 0
    return int(SLACK_BYTES + weights + max(*phases, together))
