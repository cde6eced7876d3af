"""Bytes that the device's memory moves for one guided denoiser call and one decoded chunk: ours against diffusers.

    python -m benchmarks.byte_ledger [--size svd-xt] [--operations 12]

Counted on the meta device, so no GPU is needed, no machine disturbs it and a second is enough. Rules:

- an operation reads each element of its inputs once and writes each of its outputs once; an expanded axis counts once,
  a view is no operation;
- group_norm reads its input twice (moments, then the normalised values); torch's own on CUDA first copies an input
  that is not contiguous in [N, C, ...] order (the dispatcher's `clone`), and its output is contiguous so;
- a convolution works channels-last where its input or its weight lies so, as cuDNN does, and copies the other;
- attention reads queries, keys and values and writes its output: the kernels used at size never store the scores;
- our kernels (model.optimized.kernels) are one operation each, and follow the same rules.

What stays in a cache between two operations is counted all the same: these are bounds of the eager forms, and what a
compiler fuses further is not in them.

Legend: B batch slots, T frames, C channels, H, W size at the layer.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.entry import run_main
from model.memory.plan import AttentionReplaced
from model.optimized.fused_blocks import fuse
from model.optimized.kernels import block_ops as kernels
from model.optimized.kernels.block_ops import BlockOps
from model.presets import Preset, preset
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae

GUIDED = 2
CHUNK = 7
GB = 1e9


@dataclass
class Ledger:
    """Bytes moved, and how often, by operation."""

    moved: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, size: int) -> None:
        """One operation of this name that moves `size` bytes."""
        self.moved[name] += size
        self.calls[name] += 1

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.moved.values())

    @property
    def copied(self) -> int:
        """Bytes that are moved and not changed: changes of layout, broken-up and joined tensors."""
        return sum(self.moved[name] for name in COPIES)


COPIES = frozenset({"clone", "copy_", "_to_copy", "cat", "stack", "repeat", "index_select", "convolution's copy"})
_FREE = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "scalar_tensor"})


class ByteCounter(TorchDispatchMode):
    """Enters every operation inside it into a Ledger."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = Ledger()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in _FREE:
            return result
        if name == "convolution":
            return self._convolution(inputs, result)
        if name in ("native_group_norm", "group_norm"):
            self.ledger.add(name, sum(map(distinct_bytes, [inputs[0], *inputs])) + outputs[0].nbytes)
        elif name.endswith("_") and not name.endswith("__"):
            self.ledger.add(
                name, sum(map(distinct_bytes, inputs[1:] if name == "copy_" else inputs)) + outputs[0].nbytes
            )
        else:
            storages = {leaf.untyped_storage()._cdata for leaf in inputs}
            written = [leaf for leaf in outputs if leaf.untyped_storage()._cdata not in storages]
            if written:
                self.ledger.add(name, sum(map(distinct_bytes, inputs)) + sum(map(distinct_bytes, written)))
        return result

    def _convolution(self, inputs: list[Tensor], result: Tensor) -> Tensor:
        """cuDNN works channels-last where its input or its weight is, and copies the other; so lies its output."""
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}[result.ndim]
        last = [not one.is_contiguous() and one.is_contiguous(memory_format=layout) for one in inputs[:2]]
        if any(last):
            for one, fits in zip(inputs[:2], last, strict=True):
                if not fits and not one.is_contiguous(memory_format=layout):
                    self.ledger.add("convolution's copy", 2 * one.nbytes)
            result = torch.empty_like(result, memory_format=layout)
        self.ledger.add("convolution", sum(map(distinct_bytes, inputs)) + result.nbytes)
        return result


def distinct_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, those of an expanded axis once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


def moved_by(work: Callable[[], object]) -> Ledger:
    """The ledger of one run of `work` on the meta device."""
    counter = ByteCounter()

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # [B, H, L, d] with the strides of [B, L, H, d], as flash attention gives it.
        out = query.new_empty((query.shape[0], query.shape[2], query.shape[1], value.shape[-1])).transpose(1, 2)
        counter.ledger.add("attention", sum(map(distinct_bytes, (query, key, value))) + out.nbytes)
        return out

    with torch.no_grad(), AttentionReplaced(attend), counter:
        work()
    return counter.ledger


NAMES = ("diffusers", "ours without kernels", "ours")


def networks(name: str, size: Preset) -> tuple[Any, Any]:
    """UNet and VAE in float16 on the meta device: unmodified, fused, or fused with our kernels."""
    unet = build_unet(size, task("image-to-video"), device="meta").to("meta", torch.float16).eval()
    vae = build_vae(size, device="meta").to("meta", torch.float16).eval()
    if name != "diffusers":
        ops = BlockOps(kernels.NAMES if name == "ours" else ())
        fuse(unet, ops=ops)
        fuse(vae, ops=ops)
    return unet, vae


def step_ledger(unet: Any, size: Preset, frames: int | None = None) -> Ledger:
    """Of one guided denoiser call."""
    shape = (GUIDED, frames or size.num_frames, 2 * size.vae.latent_channels, size.height // 8, size.width // 8)
    with torch.device("meta"):
        sample = torch.empty(shape, dtype=torch.float16)
        context = torch.empty(GUIDED, 1, int(unet.config["cross_attention_dim"]), dtype=torch.float16)
        timestep, vector = torch.empty(GUIDED), torch.empty(GUIDED, 3)
    return moved_by(lambda: unet(sample, timestep, context, added_time_ids=vector, return_dict=False))


def decode_ledger(vae: Any, size: Preset, frames: int = CHUNK) -> Ledger:
    """Of one decoded chunk."""
    shape = (frames, size.vae.latent_channels, size.height // 8, size.width // 8)
    latents = torch.empty(shape, dtype=torch.float16, device="meta")
    return moved_by(lambda: vae.decode(latents, num_frames=frames).sample)


def main() -> None:
    """Print a line for each way of working, and its largest operations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["svd-xt", "svd", "tiny"], default="svd-xt")
    parser.add_argument("--operations", type=int, default=0, help="of the largest ones to show")
    options = parser.parse_args()
    size = preset(options.size)
    for name in NAMES:
        unet, vae = networks(name, size)
        step, decode = step_ledger(unet, size), decode_ledger(vae, size)
        print(
            f"{name}: {step.total / GB:.0f} GB a guided step of {size.num_frames} frames ({step.copied / GB:.1f} only "
            f"copied), {decode.total / GB:.0f} GB a decoded chunk of {CHUNK} ({decode.copied / GB:.1f} only copied)"
        )
        for ledger in (step, decode) if options.operations else ():
            for operation, moved in ledger.moved.most_common(options.operations):
                print(f"    {operation:22} {ledger.calls[operation]:4} calls {moved / GB:7.1f} GB")


if __name__ == "__main__":
    run_main(main)
