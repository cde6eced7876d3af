"""Frames made larger: by Lanczos resampling, or by an ONNX super-resolution network, tile by tile. Imports no torch.

A network is any ONNX graph with one input [1, 3, h, w] and one output [1, 3, f h, f w], float32, RGB from 0 to 1 (what
Real-ESRGAN, SwinIR and their like are exported as). A frame is cut into tiles that overlap; of each tile's result the
middle counts, so that no border shows where the network sees no further than the overlap.

Legend: H, W pixels of a frame, f the factor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.errors import CheckpointError, InvalidRequest, MissingExtra

Frame = NDArray[np.uint8]
"""[H, W, 3], RGB."""

FACTORS: Final = (2, 3, 4)
"""By which a frame can be made larger."""
LANCZOS: Final = "lanczos"
"""The network's name where there is none: resampling."""
TILE: Final = 256
"""Side of a tile, where the network takes any size."""
OVERLAP: Final = 16
"""Pixels of a tile's border that do not count."""


@runtime_checkable
class Upscaler(Protocol):
    """Makes frames larger."""

    name: str
    version: str

    def factors(self) -> tuple[int, ...]:
        """By which it can make them larger."""
        ...

    def larger(self, frame: Frame, factor: int) -> Frame:
        """[H, W, 3] -> [f H, f W, 3]. Blocks; called from one thread at a time."""
        ...


class Lanczos:
    """Resampling with Lanczos' kernel of three lobes: sharp, and nothing invented."""

    name = LANCZOS
    version = ""

    def factors(self) -> tuple[int, ...]:
        """All of them."""
        return FACTORS

    def larger(self, frame: Frame, factor: int) -> Frame:
        """[H, W, 3] -> [f H, f W, 3]."""
        height, width, _ = frame.shape
        resized = Image.fromarray(frame).resize((factor * width, factor * height), Image.Resampling.LANCZOS)
        return np.asarray(resized)


class OnnxUpscaler:
    """A super-resolution network.

    Args:
        name: how requests name it.
        path: the ONNX file.
        threads: of the CPU; 0: as many as onnxruntime chooses.

    Raises:
        MissingExtra: onnxruntime is not installed.
        CheckpointError: the file does not load, or is no such network.
    """

    def __init__(self, name: str, path: Path, threads: int = 0) -> None:
        self.name = name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"the upscaler {name} cannot be read: {error}", param="upscalers") from error
        self.version = hashlib.sha256(data).hexdigest()[:12]
        self._session = _session(name, data, threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            shapes = [one.shape for one in (*inputs, *outputs)]
            raise CheckpointError(
                f"the upscaler {name} must have one input [1, 3, h, w] and one output, not {shapes}", param="upscalers"
            )
        self._input = inputs[0].name
        self._tile = tuple(side if isinstance(side, int) else TILE for side in inputs[0].shape[2:])
        self._factor = self._measure()

    def factors(self) -> tuple[int, ...]:
        """The one it was trained for."""
        return (self._factor,)

    def larger(self, frame: Frame, factor: int) -> Frame:
        """[H, W, 3] -> [f H, f W, 3].

        Raises:
            InvalidRequest: another factor than the network's.
        """
        if factor != self._factor:
            raise InvalidRequest(
                f"{self.name} makes frames {self._factor} times as large, not {factor}", param="upscale"
            )
        height, width, _ = frame.shape
        result = np.empty((factor * height, factor * width, 3), np.uint8)
        for top, bottom in spans(height, self._tile[0]):
            for left, right in spans(width, self._tile[1]):
                tile = _cut(frame, top - OVERLAP, left - OVERLAP, self._tile)
                made = self._run(tile)
                inner = made[
                    factor * OVERLAP : factor * (OVERLAP + bottom - top),
                    factor * OVERLAP : factor * (OVERLAP + right - left),
                ]
                result[factor * top : factor * bottom, factor * left : factor * right] = inner
        return result

    def _run(self, tile: Frame) -> Frame:
        pixels = tile.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
        (made,) = self._session.run(None, {self._input: pixels})
        levels = np.clip(np.rint(np.asarray(made)[0].transpose(1, 2, 0) * 255), 0, 255)
        frame: Frame = levels.astype(np.uint8)
        return frame

    def _measure(self) -> int:
        """The factor, by trying."""
        probe = np.zeros((*self._tile, 3), np.uint8)
        try:
            made = self._run(probe)
        except Exception as error:
            raise CheckpointError(f"the upscaler {self.name} does not run: {error}", param="upscalers") from error
        factor = int(made.shape[0] // self._tile[0])
        if made.shape != (factor * self._tile[0], factor * self._tile[1], 3) or factor not in FACTORS:
            raise CheckpointError(
                f"the upscaler {self.name} makes {made.shape[:2]} of {self._tile}: none of {FACTORS} times that",
                param="upscalers",
            )
        return factor


def spans(length: int, tile: int) -> Iterator[tuple[int, int]]:
    """Where the counting middles of tiles lie along a side: start and end, exclusive."""
    step = tile - 2 * OVERLAP
    for start in range(0, length, step):
        yield start, min(start + step, length)


def _cut(frame: Frame, top: int, left: int, tile: Sequence[int]) -> Frame:
    """A tile that may reach beyond the frame, whose border is then repeated."""
    height, width, _ = frame.shape
    rows = np.clip(np.arange(top, top + tile[0]), 0, height - 1)
    columns = np.clip(np.arange(left, left + tile[1]), 0, width - 1)
    return frame[rows[:, None], columns[None, :]]


def _session(name: str, data: bytes, threads: int) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtra("upscaling by a network", "export") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [one for one in wanted if one in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(data, options, providers=providers)
    except Exception as error:
        raise CheckpointError(f"the upscaler {name} does not load: {error}", param="upscalers") from error


class Upscalers:
    """The upscalers that requests may name: Lanczos, and those the operator adds.

    Args:
        files: the networks' ONNX files, by name; each is loaded at its first use, or by `check`.
    """

    def __init__(self, files: dict[str, Path] | None = None, threads: int = 0) -> None:
        self._files = files or {}
        self._threads = threads
        self._loaded: dict[str, Upscaler] = {LANCZOS: Lanczos()}

    @property
    def names(self) -> tuple[str, ...]:
        """What can be named."""
        return (LANCZOS, *(name for name in self._files if name != LANCZOS))

    def check(self) -> None:
        """Load every network. Raises as OnnxUpscaler."""
        for name in self.names:
            self.find(name)

    def find(self, name: str) -> Upscaler:
        """The upscaler of this name.

        Raises:
            InvalidRequest: there is none.
            MissingExtra, CheckpointError: as OnnxUpscaler.
        """
        if name not in self.names:
            raise InvalidRequest(
                f"no upscaler is called {name[:100]!r}; there are {', '.join(self.names)}",
                code="model_not_found",
                param="upscaler",
            )
        if name not in self._loaded:
            self._loaded[name] = OnnxUpscaler(name, self._files[name], self._threads)
        return self._loaded[name]


def parse_files(text: str) -> dict[str, Path]:
    """NAME=FILE,NAME=FILE as names and files.

    Raises:
        InvalidRequest: one lacks its name or its file.
    """
    files: dict[str, Path] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, path = part.partition("=")
        if not (name and equals and path) or name == LANCZOS:
            raise InvalidRequest(f"an upscaler is NAME=FILE, not {part[:200]!r}", param="upscalers")
        files[name] = Path(path)
    return files
