"""Which dtype a checkpoint is loaded in where none was named. Imports torch only to look for a GPU."""

from __future__ import annotations

from typing import Literal, cast

from model.errors import InvalidRequest
from model.sources.layout import Precision

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]


def resolve_dtype(dtype: DtypeName | str, device: str) -> Precision:
    """The dtype of the weights: `auto` is float16 on a CUDA device, as published pipelines run, and float32 on a CPU.

    Args:
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`.
    """
    if dtype != "auto":
        return cast(Precision, dtype)
    return "float16" if resolve_device(device).startswith("cuda") else "float32"


def is_intel(name: str) -> bool:
    """Whether a device is one of those that only OpenVINO runs on: xpu, xpu:1, npu."""
    return name == "npu" or name.partition(":")[0] == "xpu"


def resolve_device(name: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:1`; auto is CUDA where torch sees a device.

    `cpu` for Intel's GPUs and NPUs (xpu, xpu:1, npu) too: OpenVINO runs the networks there, and torch the rest here.

    Raises:
        InvalidRequest: another name, or a CUDA device that torch does not see.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu" or is_intel(name):
        return "cpu"
    kind, colon, number = name.partition(":")
    if kind != "cuda" or bool(colon) != number.isdecimal():
        raise InvalidRequest(f"a device is auto, cpu, cuda, cuda:1, xpu, xpu:1 or npu, not {name!r}", param="device")
    if int(number or 0) >= count:
        there = "no CUDA device" if not count else "one CUDA device" if count == 1 else f"{count} CUDA devices"
        raise InvalidRequest(
            f"device {name}: torch {torch.__version__} sees {there} here; take cpu, or install the GPU's driver and a "
            "build of torch for CUDA",
            param="device",
        )
    return name


def resolve_devices(names: str) -> list[str]:
    """The devices of `cuda:0,cuda:1`, or of `all`: every CUDA device that torch sees.

    Raises:
        InvalidRequest: there is none, one is not here, or a GPU is named twice.
    """
    if names == "all":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise InvalidRequest("--devices all: torch sees no CUDA device here; leave --devices out", param="devices")
        return [f"cuda:{number}" for number in range(count)]
    devices = ["cuda:0" if name == "cuda" else name for name in names.split(",")]
    for name in devices:
        if name != "cpu" and not name.startswith("cuda"):
            raise InvalidRequest(f"--devices takes cuda:0,cuda:1 or all, not {names!r}", param="devices")
        resolve_device(name)
        if name != "cpu" and devices.count(name) > 1:
            raise InvalidRequest(f"--devices has {name} twice", param="devices")
    return devices
