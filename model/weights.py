"""A network out of safetensors files, every weight to its device and dtype as it is read, whole or not at all.

`from_pretrained` fills a weight that a file lacks with random numbers, and says so only in a log. Here a weight that is
missing, of another shape, or known to no part of the network is an error that names it. The network is made on the
meta device, so that beside the loaded weights a process holds one weight at a time. `load_strict` holds a folder of
diffusers' to the same: a training that began on random numbers would not show it.

On the CPU a network's weights may lie in one allocation, as `fused` blocks (model.optimized.fused_blocks) read them:
convolutions in channels-last layout, queries, keys and values of a self-attention as one matrix. A weight that is
written so at once is not copied again: fresh memory, which the kernel hands out a page at a time, zeroed, costs more
than the conversion that fills it. (Huge pages cost twice as much again where memory is not plentiful, so none.)
"""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.errors import CheckpointError
from model.platform import trim_freed_memory
from model.prefault import ALIGNMENT, take
from model.sources.layout import INCOMPLETE, ComponentFiles, component_files, read_header

_SHOWN: Final = 5
_TRIM_EVERY: Final = 16 * 2**20
"""Bytes after which what conversions freed goes back to the kernel: glibc reuses holes of one size badly."""
Layout = Literal["each", "together", "fused"]
"""each: every weight has memory of its own; together: one allocation; fused: one, as fused blocks read it."""

_FORMATS: Final = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Number of a convolution weight's dimensions -> its layout in a fused network."""
SELF_ATTENTION: Final = ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight")
"""Ends of the names of weights that fused blocks read as one matrix."""
_DTYPES: Final = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""As headers name them."""
Network = TypeVar("Network")
_UNUSED: Final = ("position_ids",)
"""Ends of names that older versions of transformers wrote, and that are no weights."""


def load_network(
    kind: type[Any], files: ComponentFiles, device: torch.device | str, dtype: torch.dtype, layout: Layout = "each"
) -> Any:
    """The network in evaluation mode, frozen. Nothing is read before names and shapes are seen to be its own.

    Args:
        kind: a class of diffusers' or transformers'.
        layout: how its weights lie in memory, on the CPU (module's docstring).

    Raises:
        CheckpointError: a file is cut short, or its weights are not exactly the network's.
    """
    network = empty_network(kind, files.folder)
    wanted: Mapping[str, Tensor] = network.state_dict()
    stored = _stored(files, wanted)
    targets: dict[str, Tensor] = {}
    if layout != "each" and torch.device(device).type == "cpu":
        copied = {name: one for name, one in wanted.items() if _is_copied(name, one, stored[name], dtype, layout)}
        targets = allocate(copied, dtype, layout, files.folder)
    found: dict[str, Tensor] = {}
    untrimmed = 0
    for file in files.files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in (name for name, weight in stored.items() if weight.file == file):
                    weight = opened.get_tensor(stored[name].key)
                    if name in targets:
                        found[name] = targets[name].copy_(weight)
                        forget_pages(weight)
                        continue
                    found[name] = placed = _placed(weight, device, dtype)
                    if placed.device.type != "cpu" and (untrimmed := untrimmed + placed.nbytes) >= _TRIM_EVERY:
                        untrimmed = 0
                        trim_freed_memory()
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}; {INCOMPLETE}", param="model") from error
    network.load_state_dict(found, strict=True, assign=True)
    fill_buffers(network, device)
    return network.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A weight in a file, by the file's header."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def _stored(files: ComponentFiles, wanted: Mapping[str, Tensor]) -> dict[str, _Stored]:
    """Where each of a network's weights lies, in the order of the files. Raises as `load_network`."""
    stored: dict[str, _Stored] = {}
    strangers: list[str] = []
    for file in files.files:
        for key, one in read_header(file).items():
            name = _name_of(key, wanted)
            if name is not None:
                stored[name] = _Stored(file, key, tuple(one["shape"]), str(one["dtype"]))
            elif not key.endswith(_UNUSED):
                strangers.append(key)
    _check(files.folder, wanted, stored, strangers)
    return stored


def _is_copied(name: str, own: Tensor, stored: _Stored, dtype: torch.dtype, layout: Layout) -> bool:
    """Whether a weight cannot be used as it lies in the file, mapped: of another dtype, or laid out anew."""
    if not own.is_floating_point():
        return False
    laid_anew = channels_last(own).stride() != own.stride() or name.endswith(SELF_ATTENTION)
    return stored.dtype != _DTYPES.get(dtype) or (layout == "fused" and laid_anew)


def empty_network(kind: type[Any], folder: Path) -> Any:
    """The network that a folder's config.json describes, without weights: on the meta device.

    Raises:
        CheckpointError: there is no config, or it does not fit the class.
    """
    try:
        with torch.device("meta"):
            if issubclass(kind, ModelMixin):
                return kind.from_config(kind.load_config(folder, local_files_only=True))
            return kind(kind.config_class.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a network: {error}", param="model"
        ) from error


def _name_of(key: str, wanted: Mapping[str, Tensor]) -> str | None:
    """The network's name for a file's; versions of transformers differ in a first part of CLIP's."""
    return next((name for name in (key, key.partition(".")[2], f"text_model.{key}") if name in wanted), None)


def _placed(weight: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    return weight.to(device, dtype if weight.is_floating_point() else weight.dtype)


def _check(folder: Path, wanted: Mapping[str, Tensor], found: Mapping[str, _Stored], strangers: list[str]) -> None:
    if missing := sorted(wanted.keys() - found.keys()):
        raise CheckpointError(f"{folder} does not load: missing keys: {some(missing)}", param="model")
    if strangers:
        raise CheckpointError(f"{folder} does not load: unexpected keys: {some(strangers)}", param="model")
    wrong = [
        f"{name}: {found[name].shape} for {tuple(own.shape)}"
        for name, own in wanted.items()
        if found[name].shape != tuple(own.shape)
    ]
    if wrong:
        raise CheckpointError(
            f"{folder} does not load: mismatched keys: {some(wrong)}: its config is another network's", param="model"
        )


def some(names: Iterable[object]) -> str:
    """The first few of the names, and how many more there are."""
    listed = [str(name) for name in names]
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def fill_buffers(network: nn.Module, device: torch.device | str) -> None:
    """Make buffers that no file stores: CLIP's position numbers. Raises CheckpointError for any other."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                if name != "position_ids":
                    raise CheckpointError(f"{type(module).__name__} has a buffer {name} that is not known here")
                module._buffers[name] = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).clone()


def class_of(folder: Path) -> str:
    """The class that the config.json of a network's folder names.

    Raises:
        CheckpointError: there is none, or it names none.
    """
    path = folder / "config.json"
    try:
        return str(cast(dict[str, Any], json.loads(path.read_text()))["_class_name"])
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(
            f"{folder} holds no network of diffusers': {path.name}: {error}", param="model"
        ) from error


def load_strict(kind: type[Network], folder: Path) -> Network:
    """The network in float32, on the CPU, every weight out of the folder.

    Raises:
        CheckpointError: it does not load, or a weight is missing, of another shape, or known to no part of it.
    """
    variant = component_files(folder, "float32").variant or None
    try:
        network, problems = cast(Any, kind).from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True, variant=variant
        )
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{folder} does not load: {error}", param="model") from error
    for what, names in problems.items():
        if names:
            raise CheckpointError(f"{folder} has {what.replace('_', ' ')}: {some(names)}", param="model")
    if meta := [name for name, p in cast(nn.Module, network).named_parameters() if p.is_meta]:
        raise CheckpointError(f"{folder} has missing keys: {some(meta)}", param="model")
    return cast(Network, network)


def release_weights(network: nn.Module) -> None:
    """Free a network's weights where a graph holds them; its device and dtype stay what they were."""
    weight = next(network.parameters())
    strip_layers(network, weight.device, weight.dtype)


def strip_layers(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Take a network's layers away; one empty parameter says on which device and in which dtype it computes."""
    network._modules.clear()
    network.register_parameter("empty", nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False))
    network.eval()


def channels_last(weight: Tensor) -> Tensor:
    """A convolution's weight as fused blocks read it; any other weight as it is. A copy only where that differs."""
    if weight.ndim not in _FORMATS:
        return weight
    return weight.contiguous(memory_format=_FORMATS[weight.ndim])


def allocate(
    wanted: Mapping[str, Tensor], dtype: torch.dtype, layout: Layout, folder: Path | None = None
) -> dict[str, Tensor]:
    """Uninitialised weights in one allocation, in the order of `wanted`.

    Args:
        wanted: weights on the meta device: their names and shapes.
        dtype: that they are to have.
        folder: whose memory is taken where some was reserved (model.prefault).
    """
    laid = {name: channels_last(one) if layout == "fused" else one.contiguous() for name, one in wanted.items()}
    step = ALIGNMENT // dtype.itemsize
    starts, end = {}, 0
    for name, one in laid.items():
        starts[name] = end
        end += -(-one.numel() // step) * step
    memory = None if folder is None or not end else take(folder, end * dtype.itemsize)
    block = torch.empty(end, dtype=dtype) if memory is None else torch.frombuffer(memory, dtype=dtype, count=end)
    return {name: block.as_strided(one.shape, one.stride(), starts[name]) for name, one in laid.items()}


def forget_pages(weight: Tensor) -> None:
    """Let go of a mapped file's pages in which a weight lies, once it was copied: they stay in the page cache.

    So the process holds one weight of the file at a time. Reading the weight again reads the file again.
    """
    if not hasattr(mmap, "MADV_DONTNEED") or weight.device.type != "cpu":
        return
    first = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if whole > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)
