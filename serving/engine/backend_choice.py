"""Which backend `auto` takes on a CPU: the fastest of those at hand that are equal to torch, as measured once.

At hand is a backend whose runtime is installed and whose graph of the checkpoint is in the user's cache; `auto` exports
none, since that takes longer than a server's start may. (The first run with `--denoiser openvino` leaves a graph there;
from the next start on `auto` has the choice.) The choice stands in the checkpoint's profile.json, and in every video's
manifest as its backend. Deterministic mode, LoRAs, reused features and other dtypes keep torch.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch

from model.backends.registry import AUTO, make_denoiser
from model.catalog import ModelEntry
from model.checkpoint import load
from model.denoiser import CpuThreads, Denoiser
from model.errors import StillmotionError
from model.optimized.rewrites import relative_difference
from model.platform import is_intel, resolve_device
from model.sampling.row import Row
from model.sampling.sampler import evaluate
from serving.engine.profile import read_entry, write_entry
from serving.engine.settings import EngineSettings

logger = logging.getLogger(__name__)

GRAPH_BACKENDS: Final[Mapping[str, tuple[str, ...]]] = {
    "openvino": ("unet",),
    "onnxruntime": ("unet",),
}
"""Backends that run cached graphs on a CPU, called as their packages are, and the graphs of each."""
TOLERANCE: Final = 1e-5
"""Of float32: largest difference from torch over the largest magnitude of one evaluation."""
WORTHWHILE: Final = 0.95
"""Of torch's seconds, at most: a gain within the noise of the measurement is none."""
PROCESSOR: Final = 1.1
"""Of torch's processor seconds, at most. Other work on the machine disturbs these less than seconds by the clock, and
whoever shares the machine pays them."""
RUNS: Final = 3


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """What `auto` takes, and why.

    By backend: seconds of one evaluation by the clock and of a processor (of all cores), and the difference from torch.
    """

    backend: str
    seconds: Mapping[str, float]
    processor_seconds: Mapping[str, float]
    difference: Mapping[str, float]


def may_choose(entry: ModelEntry, settings: EngineSettings) -> bool:
    """Whether `auto` may take another backend than torch."""
    default = EngineSettings()
    return (
        settings.backend == AUTO
        and not (entry.exported or entry.loras or settings.deterministic or is_intel(settings.device))
        and resolve_device(settings.device) == "cpu"
        and settings.dtype in ("auto", "float32")
        and (settings.attention, settings.kernels) == (default.attention, default.kernels)
        and (settings.reuse_every, settings.fp8) == (default.reuse_every, default.fp8)
        and settings.vram_budget_gib is None
    )


def chosen_backend(entry: ModelEntry, settings: EngineSettings) -> str:
    """The backend measured to be the fastest, where `auto` has been measured here and it is still at hand."""
    if not may_choose(entry, settings):
        return settings.backend
    choice = read_choice(entry.path, settings)
    return choice.backend if choice is not None and choice.backend in ("torch", *at_hand(entry)) else AUTO


def at_hand(entry: ModelEntry) -> list[str]:
    """Backends besides torch that could run the checkpoint at once."""
    from model.backends.onnx_export import cached_graphs

    installed = [name for name in GRAPH_BACKENDS if importlib.util.find_spec(name)]
    cached = set(cached_graphs(entry, torch.float32)) if installed else set()
    return [name for name in installed if cached.issuperset(GRAPH_BACKENDS[name])]


def choose_backend(entry: ModelEntry, settings: EngineSettings, torch_denoiser: Denoiser, row: Row) -> BackendChoice:
    """Measure every backend at hand on a row beside torch, and store the choice beside the checkpoint.

    Args:
        torch_denoiser: the checkpoint's in torch, loaded already.
    """
    denoisers = {"torch": torch_denoiser}
    for name in at_hand(entry):
        try:
            denoisers[name] = make_denoiser(name, load(entry), CpuThreads(settings.cores))
        except StillmotionError as error:
            logger.warning("%s is no choice for %s here: %s", name, entry.name, error)
    choice = compare(denoisers, lambda denoiser: evaluate(denoiser, [row])[0])
    stored = write_entry(entry.path, _key(settings), asdict(choice))
    logger.info(
        "auto takes %s for %s (seconds a call: %s)%s",
        choice.backend,
        entry.name,
        ", ".join(f"{name} {seconds:.3f}" for name, seconds in choice.seconds.items()),
        "" if stored else "; this cannot be stored beside it, and is measured anew at each start",
    )
    return choice


def compare(denoisers: Mapping[str, Denoiser], call: Callable[[Denoiser], torch.Tensor]) -> BackendChoice:
    """The fastest denoiser that is equal to the first. They take turns, so that a machine that slows down slows all."""
    reference, *_ = denoisers
    seconds, processor = (dict.fromkeys(denoisers, float("inf")) for _ in range(2))
    outputs: dict[str, torch.Tensor] = {}
    for _ in range(RUNS):
        for name, denoiser in denoisers.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            outputs[name] = call(denoiser)
            processor[name] = min(processor[name], time.process_time() - started_cpu)
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    difference = {name: relative_difference(output, outputs[reference]) for name, output in outputs.items()}
    eligible = [
        name
        for name in denoisers
        if difference[name] <= TOLERANCE
        and seconds[name] <= WORTHWHILE * seconds[reference]
        and processor[name] <= PROCESSOR * processor[reference]
    ]
    fastest = min(eligible, key=seconds.__getitem__, default=reference)
    return BackendChoice(fastest, seconds, processor, difference)


def read_choice(folder: Path, settings: EngineSettings) -> BackendChoice | None:
    """The choice stored beside a checkpoint for this machine; None where there is none that can be read."""
    entry: Any = read_entry(folder, _key(settings))
    try:
        return BackendChoice(
            str(entry["backend"]),
            dict(entry["seconds"]),
            dict(entry["processor_seconds"]),
            dict(entry["difference"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _key(settings: EngineSettings) -> str:
    """What a choice holds for: another thread count, or another version of a runtime, is measured anew."""
    versions = ", ".join(f"{package} {_version(package)}" for package in ("torch", *GRAPH_BACKENDS))
    return f"auto cpu float32 {settings.cores} threads: {versions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
