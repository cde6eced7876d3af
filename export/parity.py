"""The parity gate: an exported graph that differs from torch beyond a tolerance is not installed.

Each network is run by torch and by the runtime it is exported for (onnxruntime, OpenVINO) on real conditioning
(pictures or prompts, noised to several levels), at batches and chunk lengths other than those it was traced at; then
whole videos are sampled both ways. Where a network
fails, bisection (export.bisect) says at which of its layers the difference starts.

Legend: B batch slots, T frames, t frames of a chunk, C channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.bisect import first_difference
from export.onnx import Component
from export.samples import BATCHES, Samples
from model.backends.onnxruntime import OnnxGraph
from model.backends.openvino import CPU, OpenVinoGraph
from model.backends.registry import AUTO, make_denoiser
from model.checkpoint import Checkpoint
from model.denoiser import CpuThreads
from model.errors import StillmotionError
from model.optimized.rewrites import relative_difference
from model.sampling.sampler import advance, prepare_row
from model.vae import decode


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a graph may be from torch.

    Args:
        network: largest difference of one call, over the largest magnitude.
        video: of a whole sampled video, PSNR in dB of its 8-bit frames.
    """

    network: float
    video: float


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(1e-4, 50.0),
    "float16": Tolerance(2e-2, 40.0),
    "bfloat16": Tolerance(1e-1, 30.0),
}
"""By the dtype of the denoiser's weights."""
FP8_TOLERANCE = Tolerance(3e-1, 25.0)
"""Where the denoiser's layers read 8-bit floats: three bits of mantissa, one rounding a layer."""


RUNTIMES: Mapping[str, Callable[[Path, CpuThreads], OnnxGraph | OpenVinoGraph]] = {
    "onnxruntime": lambda file, cores: OnnxGraph(file, torch.device("cpu"), cores),
    "openvino": lambda file, cores: OpenVinoGraph(file, CPU, cores),
}
"""What computes a graph on a CPU, by name."""

Inputs = Mapping[str, Sequence[dict[str, Tensor]]]
"""Of each component, by name: its inputs, one dict a call."""


class ParityError(StillmotionError):
    """An exported graph does not give what torch gives; nothing was installed."""

    code = "parity_failed"


@dataclass(frozen=True, slots=True)
class Measured:
    """One comparison: `difference` over the largest magnitude, or for the video its PSNR in dB."""

    what: str
    size: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance; NaN is not."""
        return self.difference >= self.allowed if self.what == "video" else self.difference <= self.allowed

    def as_dict(self) -> dict[str, object]:
        """For the manifest; JSON has no infinity."""
        return asdict(self) | {"difference": min(self.difference, 999.0)}


def torch_outputs(components: Sequence[Component], inputs: Inputs) -> dict[str, list[Tensor]]:
    """The networks' outputs in torch; computed before the rewrites, they test the rewrites too."""
    with torch.inference_mode():
        return {part.name: [part.module(**call) for call in inputs[part.name]] for part in components}


def check_components(
    components: Sequence[Component],
    files: Mapping[str, Path],
    inputs: Inputs,
    expected: Mapping[str, Sequence[Tensor]],
    tolerance: Tolerance,
    runtime: str = "onnxruntime",
    report: Callable[[str], None] = lambda _: None,
) -> list[Measured]:
    """Every network's measurements.

    Args:
        files: each component's graph, by name.
        inputs, expected: of each component, by name (export.samples.real_inputs, `torch_outputs`).
        runtime: what computes the graphs, one of RUNTIMES.

    Raises:
        ParityError: one is beyond the tolerance; the message names the layer where the difference starts.
    """
    measured = []
    for component in components:
        graph = RUNTIMES[runtime](files[component.name], CpuThreads(torch.get_num_threads()))
        for call, answer in zip(inputs[component.name], expected[component.name], strict=True):
            size = " ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in call.items())
            difference = _difference(graph.run(call, answer.shape), answer)
            one = Measured(component.name, size, difference, tolerance.network)
            measured.append(one)
            report(f"parity {component.name}, {len(answer)}: {one.difference:.1e}")
            if not one.passed:
                where = first_difference(component.module, files[component.name], call, tolerance.network)
                raise ParityError(
                    f"{component.name} differs from torch by {one.difference:.1e} of its largest value at {size}, "
                    f"{one.allowed:.0e} is allowed; in onnxruntime the difference starts {where}. Nothing was installed"
                )
    return measured


def _difference(actual: Tensor, expected: Tensor) -> float:
    if not bool(actual.isfinite().all()):
        return float("nan")
    return relative_difference(actual.float(), expected.float())


def check_video(
    expected: Mapping[int, Sequence[np.ndarray]], exported: Checkpoint, samples: Samples, tolerance: Tolerance
) -> list[Measured]:
    """Whole videos, sampled with torch and with the exported graphs, alone and three at once.

    Args:
        expected: torch's, by how many were sampled together (`sample_videos`).

    Raises:
        ParityError: one is beyond the tolerance.
    """
    measured = []
    for together in BATCHES:
        frames = sample_videos(exported, samples, together)
        for index, (actual, video) in enumerate(zip(frames, expected[together], strict=True)):
            one = Measured("video", f"{index + 1} of {together} together", psnr(actual, video), tolerance.video)
            measured.append(one)
            if not one.passed:
                raise ParityError(
                    f"video {one.size} is {one.difference:.1f} dB from torch's, {one.allowed:.0f} dB is asked for. "
                    "Nothing was installed"
                )
    return measured


def sample_videos(checkpoint: Checkpoint, samples: Samples, together: int) -> list[np.ndarray]:
    """Frames, [T, H, W, 3] uint8, of `together` requests that share every denoiser call."""
    denoiser = make_denoiser(AUTO, checkpoint, CpuThreads(torch.get_num_threads()))
    rows = [prepare_row(checkpoint, *samples.request(checkpoint.entry, index)) for index in range(together)]
    while not rows[0].done:
        rows = advance(denoiser, rows)
    chunk = int(checkpoint.entry.defaults["decode_chunk_size"])
    return [decode(checkpoint.vae, row.latents, chunk) for row in rows]


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of 8-bit frames, in dB; infinite where they are equal."""
    error = float(np.square(actual.astype(np.float64) - expected).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
