"""What 8-bit floats in the denoiser cost: PSNR against float32, simulated on a CPU with a trained checkpoint.

    python -m benchmarks.fp8_quality [--model mini-image-to-video] [--pictures 4] [--json F]

Each picture becomes a video in float32, and again with a change; PSNR is over all pixels of all frames, the worst and
the median of the pictures. The same layers are quantized as `--fp8` quantizes (model.optimized.fp8), by the same rule,
one scale a row of weights and of activations; what is simulated is the product, of numbers that were rounded to E4M3
and back, in float32 (tests/unit/model/optimized/test_fp8.py holds it to torchao's own).

    bfloat16          networks in bfloat16, no 8-bit floats: what `--dtype bfloat16` alone costs
    fp8               8-bit floats in a float32 network: what the rounding to 8 bits alone costs
    fp8 in bfloat16   both: what `--fp8` gives
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.entry import run_main
from benchmarks.one_video import stills
from model.catalog import ModelEntry
from model.media.image import to_png
from model.optimized.fp8 import quantize_fp8
from model.optimized.fused_blocks import fuse
from model.platform import DtypeName
from model.presets import preset
from model.sources.source import find
from model.tasks import task
from model.unet import build_unet
from serving.engine.loaded_model import load_model
from serving.engine.local import generate
from serving.engine.settings import EngineSettings
from training.metrics.image import psnr

LARGEST: Final = 448.0
"""Of E4M3 without infinities."""
CHANGES: Final[dict[str, tuple[str, bool]]] = {
    "bfloat16": ("bfloat16", False),
    "fp8": ("float32", True),
    "fp8 in bfloat16": ("bfloat16", True),
}
"""By name: the networks' dtype, and whether layers are quantized."""


def rounded(rows: Tensor) -> Tensor:
    """Every row [..., K] to E4M3 and back, to float32. One scale a row, in the rows' dtype: the largest becomes 448."""
    scale = (rows.abs().amax(-1, keepdim=True) / LARGEST).float()
    inside = (rows.float() / scale).nan_to_num(0.0).clamp(-LARGEST, LARGEST)  # a row of zeros has scale 0
    return inside.to(torch.float8_e4m3fn).float() * scale


class RoundedWeight(Tensor):
    """A rounded weight, whose linear layers round their inputs too."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """F.linear in float32 on rounded rows, in the input's dtype; anything else as of a plain tensor."""
        if function is not F.linear:
            return super().__torch_function__(function, types, arguments, kwargs or {})
        given, weight, bias = (*arguments, *(kwargs or {}).values(), None)[:3]
        product = F.linear(rounded(given), weight.as_subclass(Tensor).float(), None if bias is None else bias.float())
        return product.to(given.dtype)


def simulated(weight: Tensor) -> Tensor:
    """For quantize_fp8, in place of torchao's; in float32, since E4M3 times its scale is no number of bfloat16's."""
    return rounded(weight).as_subclass(RoundedWeight)


class CountedWeight(Tensor):
    """A weight that counts the floating point operations of the linear layers that read it."""

    flops = 0

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As of a plain tensor; F.linear is counted."""
        if function is F.linear:
            cls.flops += 2 * arguments[0].numel() * len(arguments[1])
        return super().__torch_function__(function, types, arguments, kwargs or {})


def quantized_share(name: str) -> float:
    """The share of a denoiser call's FLOPs that 8-bit layers have at a preset's size, counted on the meta device."""
    size, shape = preset(name), task("image-to-video")
    unet = build_unet(size, shape, device="meta").to("meta").eval()
    fuse(unet)
    quantize_fp8(unet, lambda weight: weight.as_subclass(CountedWeight))
    CountedWeight.flops = 0
    clip = torch.empty(2, size.num_frames, unet.config["in_channels"], size.height // 8, size.width // 8, device="meta")
    context = torch.empty(2, 1, size.unet.context_dim, device="meta")
    vector = torch.empty(2, len(shape.vector), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(clip, torch.empty(2, device="meta"), context, added_time_ids=vector, return_dict=False)
    return CountedWeight.flops / counter.get_total_flops()


def compared(entry: ModelEntry, pictures: Sequence[bytes], fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each change: PSNR of its videos against float32's."""

    def videos(dtype: str, fp8: bool) -> list[Any]:
        settings = EngineSettings(backend="torch", device="cpu", dtype=cast(DtypeName, dtype))
        model = load_model(entry, settings)
        if fp8:
            quantize_fp8(model.checkpoint.unet, simulated)
        params = entry.resolve(dict(fields), seed=7)
        return [generate(model, params, (picture,)).frames for picture in pictures]

    exact = videos("float32", False)
    rows = []
    for name, change in CHANGES.items():
        decibels = [psnr(mine, theirs) for mine, theirs in zip(videos(*change), exact, strict=True)]
        rows.append({"change": name, "worst_psnr_db": min(decibels), "median_psnr_db": statistics.median(decibels)})
    return rows


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="PSNR of videos of a denoiser in 8-bit floats, simulated on a CPU.")
    parser.add_argument("--model", default="mini-image-to-video")
    parser.add_argument("--stills", type=Path, default=Path("data/starter/photos"), help="folder of pictures")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--steps", type=int, help="of a video [the checkpoint's own]")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    entry = find(options.model)
    pictures = [to_png(picture) for picture in stills(options.stills, entry, options.pictures)]
    fields = {} if options.steps is None else {"num_inference_steps": options.steps}
    figures: dict[str, Any] = {"model": f"{entry.name}@{entry.version}", "pictures": len(pictures)}
    figures["quantized_share_of_svd_xt_flops"] = quantized_share("svd-xt")
    figures["rows"] = compared(entry, pictures, fields)
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
