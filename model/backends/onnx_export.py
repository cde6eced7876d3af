"""ONNX export: graph definitions, the exporter, and the cache of graphs exported on first use.

The denoiser's graph is the Denoiser protocol: one `timestep` a batch SLOT, so slots at different noise levels share a
call, and a dynamic batch axis. The frame count is fixed, as a checkpoint's is. What a task does not have (text-to-video
concatenates nothing) is no input of its graph. `timestep` and `vector` are float32 whatever the weights' dtype, because
their embeddings begin there.

The cache lies in the user's cache folder of the platform; STILLMOTION_CACHE names another. An entry's name holds all
that its content depends on, and it appears at once or not at all.

Legend: B batch slots, T frames, C latent channels, K concatenated channels, N context tokens, D their width, V vector
scalars; h, w latent.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn

from model.catalog import ModelEntry
from model.checkpoint import Checkpoint
from model.errors import MissingExtra
from model.export_manifest import ONNX_FOLDER
from model.optimized.rewrites import fold_blends, rewrite_exactly
from model.shapes import VAE_STRIDE
from model.sources.layout import cache_folder
from model.tasks import TaskSpec
from model.vae import decoder_dtype

Precision = Literal["float32", "float16", "bfloat16"]

GRAPH_VERSION = 1
"""Counts changes of the graphs themselves, so that files exported by an older version are not taken for today's."""
OPSET = 20
"""MatMul and Softmax for attention: every runtime takes it. (23 has an Attention of its own, which TensorRT fuses only
in half precision and for some head sizes.)"""
EXTERNAL_OVER = 1_500_000_000
"""Bytes of weights above which they lie beside the graph: one protobuf holds at most 2 GiB."""
TRACED_BATCH = 2
"""Batch size while tracing: not 1, which the tracer would take for a constant."""
TRACED_CHUNK = 3
"""Frames of a decoder chunk while tracing."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or an output: a number is a fixed size, a name a free axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with its free axes set."""
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype in torch's words."""
        return cast(torch.dtype, getattr(torch, self.dtype))


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph: `name` is its file's stem; inputs in the order of the module's forward()."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The free axes, each once, in order of appearance."""
        return tuple(dict.fromkeys(axis for port in self.inputs for axis in port.shape if isinstance(axis, str)))

    def example(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the sizes; whole numbers for integer ports."""
        generator = torch.Generator().manual_seed(seed)
        inputs: dict[str, Tensor] = {}
        for port in self.inputs:
            if port.torch_dtype.is_floating_point:
                inputs[port.name] = torch.randn(port.sized(sizes), generator=generator).to(port.torch_dtype)
            else:
                inputs[port.name] = torch.randint(1, 8, port.sized(sizes), generator=generator, dtype=port.torch_dtype)
        return inputs


class DenoiserModule(nn.Module):
    """The denoiser as its graph sees it: one tensor a port, the concatenation inside."""

    def __init__(self, unet: UNetSpatioTemporalConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        vector: Tensor,
        concat: Tensor | None = None,
    ) -> Tensor:
        """F of EDM's equation 7 for [B, T, C, h, w], in the weights' dtype."""
        sample = latents if concat is None else torch.cat([latents, concat], dim=2)
        output: Tensor = self.unet(sample, timestep, context, added_time_ids=vector, return_dict=False)[0]
        return output


def denoiser_graph(
    task: TaskSpec, config: Mapping[str, Any], *, height: int, width: int, dtype: str, free_size: bool = False
) -> Graph:
    """The denoiser's graph.

    Args:
        config: the UNet's.
        height, width: of the latents, h and w.
        free_size: leave h and w free.
    """
    channels, frames = int(config["out_channels"]), int(config["num_frames"])
    extra = int(config["in_channels"]) - channels
    size: tuple[int | str, ...] = ("height", "width") if free_size else (height, width)
    inputs = [
        Port("latents", dtype, ("batch", frames, channels, *size)),
        Port("timestep", "float32", ("batch",)),
        Port("context", dtype, ("batch", task.context_tokens, int(config["cross_attention_dim"]))),
        Port("vector", "float32", ("batch", len(task.vector))),
    ]
    if extra:
        inputs.append(Port("concat", dtype, ("batch", frames, extra, *size)))
    return Graph("unet", tuple(inputs), (Port("output", dtype, ("batch", frames, channels, *size)),))


class DecoderModule(nn.Module):
    """The temporal decoder as a graph sees it: one chunk of one clip."""

    def __init__(self, vae: AutoencoderKLTemporalDecoder) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Frames, [t, 3, H, W], of unscaled latents [t, C, h, w]."""
        frames: Tensor = self.vae.decode(latents, num_frames=latents.shape[0]).sample
        return frames


def decoder_graph(channels: int, dtype: str, *, height: int, width: int, free_size: bool = False) -> Graph:
    """The decoder's graph, for a chunk of any number of frames.

    Args:
        channels: C of the latents.
        height, width: of the latents, h and w.
        free_size: leave h and w free.
    """
    latent: tuple[int | str, ...] = ("height", "width") if free_size else (height, width)
    pixel: tuple[int | str, ...] = ("8*height", "8*width") if free_size else (VAE_STRIDE * height, VAE_STRIDE * width)
    return Graph(
        "vae_decoder",
        (Port("latents", dtype, ("frames", channels, *latent)),),
        (Port("frames", dtype, ("frames", 3, *pixel)),),
    )


def write_graph(module: nn.Module, graph: Graph, file: Path, sizes: Mapping[str, int], opset: int = OPSET) -> None:
    """Trace the module and write its ONNX file (and `FILE.data` beside it where its weights are large).

    The module is in evaluation mode and already rewritten; nothing is computed on real numbers, so half precision
    exports on a CPU too. `sizes` are those of the free axes while tracing, none of them 1.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    require_onnx("the ONNX export")
    shapes = {
        port.name: {index: axis for index, axis in enumerate(port.shape) if isinstance(axis, str)}
        for port in graph.inputs
    }
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            module,
            kwargs=graph.example(sizes),
            dynamo=True,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamic_shapes=shapes,
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        _forget_traces(program)
        size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
        program.save(file, external_data=size > EXTERNAL_OVER)


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter warns of its own internals and of libraries it does without; errors it raises.

    torch.__trace is a structured log of every guess the tracer makes: where somebody listens at the root of all
    loggers, writing it takes as long as the export.
    """
    logs = {log: log.level for log in map(logging.getLogger, ("torch.onnx", "torch.__trace"))}
    for log in logs:
        log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for log, level in logs.items():
                log.setLevel(level)


def require_onnx(feature: str) -> None:
    """Raise MissingExtra unless onnx and onnxscript are installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(feature, "export") from error


def _forget_traces(program: Any) -> None:
    """Drop the tracer's notes on source lines, which name folders of this machine; module paths stay."""
    for node in program.model.graph.all_nodes():
        for key in [key for key in node.metadata_props if not key.endswith("name_scopes")]:
            del node.metadata_props[key]


logger = logging.getLogger(__name__)


def cache_key(entry: ModelEntry, dtype: torch.dtype) -> str:
    """What an exported denoiser depends on: weights, dtype, rewrites, and the tools that wrote it.

    Raises:
        MissingExtra: onnx or onnxscript is not installed.
    """
    try:
        tools = f"torch{version('torch')}-onnx{version('onnx')}-onnxscript{version('onnxscript')}"
    except PackageNotFoundError as error:
        raise MissingExtra("a backend of exported graphs", "export") from error
    return f"{entry.version}-{str(dtype).removeprefix('torch.')}-r{GRAPH_VERSION}-o{OPSET}-{tools}"


def cached_graphs(entry: ModelEntry, dtype: torch.dtype, cache: Path | None = None) -> tuple[str, ...]:
    """The graphs of a checkpoint that are in the cache already: `unet`, `vae_decoder`."""
    try:
        key = cache_key(entry, dtype)
    except MissingExtra:
        return ()
    root = cache or cache_folder()
    return tuple(name for name, folder in FOLDERS.items() if (root / folder / key).exists())


def denoiser_file(checkpoint: Checkpoint, cache: Path | None = None) -> Path:
    """The ONNX file of the checkpoint's denoiser.

    An exported folder's own; else the cache's, where it is made if it is not there yet (minutes for a large network).

    Raises:
        MissingExtra: it is to be made, and onnx or onnxscript is not installed.
    """
    return _graph_file(checkpoint, "unet", checkpoint.unet.dtype, _write_denoiser, cache)


def decoder_file(checkpoint: Checkpoint, cache: Path | None = None) -> Path:
    """The ONNX file of the checkpoint's decoder, as `denoiser_file` has the denoiser's."""
    return _graph_file(checkpoint, "vae_decoder", decoder_dtype(checkpoint.vae), _write_decoder, cache)


FOLDERS: Final = {"unet": "denoisers", "vae_decoder": "decoders"}
"""Graphs that are exported on first use, and their folders in the cache."""


def _graph_file(
    checkpoint: Checkpoint,
    name: str,
    dtype: torch.dtype,
    write: Callable[[Checkpoint, Path], None],
    cache: Path | None,
) -> Path:
    own = checkpoint.entry.path / ONNX_FOLDER / f"{name}.onnx"
    if own.exists():
        return own
    folder = (cache or cache_folder()) / FOLDERS[name] / cache_key(checkpoint.entry, dtype)
    if not folder.exists():
        logger.info("exporting %s of %s to ONNX, once, into %s", name, checkpoint.entry.name, folder)
        part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        part.mkdir(parents=True)
        try:
            write(checkpoint, part / f"{name}.onnx")
            _publish(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder / f"{name}.onnx"


def _write_denoiser(checkpoint: Checkpoint, file: Path) -> None:
    entry = checkpoint.entry
    rewrite_exactly(checkpoint.unet, context_tokens=entry.task.context_tokens)
    fold_blends(checkpoint.unet)
    height, width = entry.height // VAE_STRIDE, entry.width // VAE_STRIDE
    graph = denoiser_graph(
        entry.task,
        checkpoint.unet.config,
        height=height,
        width=width,
        dtype=str(checkpoint.unet.dtype).removeprefix("torch."),
        free_size=True,
    )
    sizes = {"batch": TRACED_BATCH, "height": height, "width": width}
    write_graph(DenoiserModule(checkpoint.unet), graph, file, sizes)


def _write_decoder(checkpoint: Checkpoint, file: Path) -> None:
    entry, vae = checkpoint.entry, checkpoint.vae
    rewrite_exactly(vae)
    fold_blends(vae)
    height, width = entry.height // VAE_STRIDE, entry.width // VAE_STRIDE
    dtype = str(decoder_dtype(vae)).removeprefix("torch.")
    graph = decoder_graph(checkpoint.latent_channels, dtype, height=height, width=width, free_size=True)
    write_graph(DecoderModule(vae), graph, file, {"frames": TRACED_CHUNK, "height": height, "width": width})


def _publish(part: Path, folder: Path) -> None:
    try:
        part.rename(folder)
    except OSError:
        if not folder.exists():  # else another process made the same one first
            raise
