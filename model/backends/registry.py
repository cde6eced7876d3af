"""Registry of denoiser backends by name. A new one is one file and one line here; each is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from model.catalog import ModelEntry
from model.checkpoint import Checkpoint
from model.denoiser import BackendOptions, CpuThreads, Denoiser, TorchDenoiser
from model.errors import InvalidRequest
from model.lora.catalog import LoraUse, choose_lora
from model.shapes import VideoShape
from model.weights import release_weights

if TYPE_CHECKING:
    from model.optimized.kernels.block_ops import BlockOps


def _fuse(checkpoint: Checkpoint, tuning: BackendOptions) -> None:
    from model.optimized.attention import AttentionDispatch
    from model.optimized.fused_blocks import fuse

    fuse(checkpoint.unet, AttentionDispatch(tuning.attention), fused_ops(tuning.kernels, checkpoint.unet.device))
    if tuning.fp8:
        from model.optimized.fp8 import quantize_fp8

        quantize_fp8(checkpoint.unet)


def _torch(checkpoint: Checkpoint, cores: CpuThreads, tuning: BackendOptions) -> Denoiser:
    _fuse(checkpoint, tuning)
    if tuning.reuse_every > 1:
        from model.optimized.feature_cache import FeatureCacheDenoiser

        return FeatureCacheDenoiser(checkpoint.unet, cores, tuning.reuse_every)
    return TorchDenoiser(checkpoint.unet, cores)


def _compiled(checkpoint: Checkpoint, cores: CpuThreads, tuning: BackendOptions) -> Denoiser:
    from model.backends.compiled import CompiledDenoiser, compile_blocks, require_compiler_on

    require_compiler_on(checkpoint.unet.device)
    _fuse(checkpoint, tuning)
    if tuning.reuse_every > 1:
        from model.optimized.feature_cache import FeatureCacheDenoiser

        compile_blocks(checkpoint.unet)
        return FeatureCacheDenoiser(checkpoint.unet, cores, tuning.reuse_every)
    return CompiledDenoiser(checkpoint.unet, cores)


def _graphed(checkpoint: Checkpoint, cores: CpuThreads, tuning: BackendOptions) -> Denoiser:
    from model.backends.cuda_graph import CudaGraphDenoiser, CudaRecorder

    recorder = CudaRecorder(checkpoint.unet.device)
    if tuning.reuse_every > 1:
        raise InvalidRequest(
            "torch-graphed replays whole evaluations; reuse features with --denoiser torch-compiled", param="reuse"
        )
    return CudaGraphDenoiser(_compiled(checkpoint, cores, tuning), recorder)


def _onnxruntime(checkpoint: Checkpoint, cores: CpuThreads, tuning: BackendOptions) -> Denoiser:
    _only_default(tuning, "onnxruntime")
    from model.backends.onnx_export import denoiser_file
    from model.backends.onnxruntime import OnnxDenoiser

    denoiser = OnnxDenoiser(denoiser_file(checkpoint), checkpoint.unet.device, cores)
    release_weights(checkpoint.unet)
    return denoiser


def _tensorrt(checkpoint: Checkpoint, cores: CpuThreads, tuning: BackendOptions) -> Denoiser:
    _only_default(tuning, "tensorrt")
    from model.backends.tensorrt import TensorRtDenoiser

    del cores  # an engine uses none
    return TensorRtDenoiser(checkpoint.entry.path, checkpoint.unet.device)


def _openvino(checkpoint: Checkpoint, cores: CpuThreads, tuning: BackendOptions) -> Denoiser:
    _only_default(tuning, "openvino")
    from model.backends.onnx_export import denoiser_file
    from model.backends.openvino import OpenVinoDenoiser, openvino_device, require_openvino

    if checkpoint.unet.device.type != "cpu":
        raise InvalidRequest("openvino runs on a CPU and on Intel's devices: cpu, xpu or npu", param="device")
    require_openvino()
    denoiser = OpenVinoDenoiser(denoiser_file(checkpoint), openvino_device(tuning.device), cores)
    release_weights(checkpoint.unet)
    return denoiser


def _only_default(tuning: BackendOptions, backend: str) -> None:
    """A graph has its own attention, and all of its layers."""
    if tuning.kernels not in (AUTO, "none"):
        raise InvalidRequest(f"{backend} has its own kernels; leave --kernels out", param="kernels")
    if tuning.attention != AUTO:
        raise InvalidRequest(f"{backend} has its own attention; leave --attention out", param="attention")
    if tuning.reuse_every > 1:
        raise InvalidRequest(f"{backend} cannot reuse features; choose --denoiser torch", param="reuse")
    if tuning.fp8:
        raise InvalidRequest(
            f"{backend} runs graphs, whose 8-bit floats `stillmotion export --fp8` writes; choose --denoiser "
            "torch-compiled, or leave --fp8 out",
            param="fp8",
        )


BACKENDS: dict[str, Callable[[Checkpoint, CpuThreads, BackendOptions], Denoiser]] = {
    "torch": _torch,
    "torch-compiled": _compiled,
    "torch-graphed": _graphed,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt": _tensorrt,
}


def _openvino_decoder(checkpoint: Checkpoint, cores: CpuThreads, device: str) -> None:
    from model.backends.exported_networks import replace_decoder
    from model.backends.onnx_export import decoder_file
    from model.backends.openvino import CPU, OpenVinoGraph, openvino_device, require_openvino

    require_openvino()
    if openvino_device(device) == CPU:
        return  # torch's fused blocks decode in 0.7 of the graph's time there (benchmarks/backends.py)
    graph = OpenVinoGraph(decoder_file(checkpoint), openvino_device(device), cores)
    replace_decoder(checkpoint.vae, graph)


DECODERS: dict[str, Callable[[Checkpoint, CpuThreads, str], None]] = {"openvino": _openvino_decoder}
"""Backends that decode too on devices of their own, where a checkpoint's weights are loaded; else torch decodes."""


def place_decoder(backend: str, checkpoint: Checkpoint, cores: CpuThreads, device: str) -> None:
    """Give the checkpoint's autoencoder the decoder of a backend that has one, in place, before blocks are fused.

    Args:
        device: as requested (BackendOptions.device).

    Raises:
        MissingExtra, InvalidRequest, CheckpointError: the backend is not installed, or does not run there.
    """
    if backend in DECODERS and not checkpoint.entry.exported:
        DECODERS[backend](checkpoint, cores, device)


AUTO = "auto"
IN_TORCH = frozenset({"torch", "torch-compiled", "torch-graphed"})
"""Backends that run the checkpoint's weights in torch."""
LORA_BACKENDS = IN_TORCH
"""Backends that read the weights where they lie at every call, so that a LoRA may be switched in between
(model.lora.merge). Compiled blocks take them as inputs, and CUDA graphs by their addresses, which no switch changes."""


def backend_for(entry: ModelEntry, requested: str) -> str:
    """The backend called `requested`; for `auto`, torch for a checkpoint, and what an exported folder was made for.

    Raises:
        InvalidRequest: no backend is called that, or it needs weights that an exported folder does not have, or engines
            that a checkpoint does not have.
    """
    if requested == AUTO:
        return _graphs_of(entry) if entry.exported else "torch"
    if requested not in BACKENDS:
        raise InvalidRequest(f"no backend is called {requested!r}; there are: {', '.join(BACKENDS)}", param="backend")
    if entry.exported and requested in IN_TORCH:
        raise InvalidRequest(
            f"{entry.name} is an export: it has graphs and no weights for {requested}; take --denoiser "
            f"{_graphs_of(entry)}",
            param="backend",
        )
    if requested == "tensorrt" and not entry.exported:
        raise InvalidRequest(
            f"{entry.name} is a checkpoint, and tensorrt runs engines: export it with --backend tensorrt or "
            "tensorrt-rtx, and name REPOSITORY/NAME",
            param="backend",
        )
    return requested


def _graphs_of(entry: ModelEntry) -> str:
    """The backend of an exported folder's graphs; engines are asked for by name."""
    from model.export_manifest import read_manifest

    return "openvino" if read_manifest(entry.path).backend == "openvino" else "onnxruntime"


def with_usable_loras(entry: ModelEntry, backend: str, fp8: bool = False) -> ModelEntry:
    """The checkpoint as it can be served on a backend: without LoRAs that this could not apply.

    Raises:
        InvalidRequest: the backend does not fit (`backend_for`).
    """
    return entry if backend_for(entry, backend) in LORA_BACKENDS and not fp8 else replace(entry, loras=())


def check_lora(entry: ModelEntry, backend: str, lora: LoraUse | None, fp8: bool = False) -> None:
    """Refuse a LoRA that the checkpoint does not offer, or that its backend cannot apply.

    Raises:
        InvalidRequest: it is refused.
    """
    if lora is None:
        return
    if fp8:
        raise InvalidRequest(
            f"{entry.name} runs in 8-bit floats, into which the LoRA {lora.name!r} cannot be merged: leave --fp8 out, "
            "or ask for no LoRA",
            code="lora_unsupported",
            param="lora",
        )
    if backend not in LORA_BACKENDS:
        raise InvalidRequest(
            f"{entry.name} runs on {backend}, which cannot apply the LoRA {lora.name!r}: serve the checkpoint with "
            "--denoiser torch, or ask for no LoRA",
            code="lora_unsupported",
            param="lora",
        )
    choose_lora(f"{lora.name}@{lora.version}", entry.loras, entry.name)


def fused_ops(kernels: str, device: torch.device) -> BlockOps | None:
    """What fused blocks use in place of torch's own operations; None on a CPU, where nothing of them is imported.

    Args:
        kernels: names with commas, as `resolve_options` gives them.
    """
    if device.type == "cpu":
        return None
    from model.optimized.kernels.choice import block_ops

    return block_ops(kernels, device)


def resolve_options(backend: str, checkpoint: Checkpoint, cores: CpuThreads, tuning: BackendOptions) -> BackendOptions:
    """The tuning with its `auto` replaced by what holds for the checkpoint on its device.

    Raises:
        InvalidRequest: an attention kernel, or another, that does not run there; or a device without 8-bit floats.
        MissingExtra: 8-bit floats without torchao.
    """
    from model.optimized.attention import choose

    if backend not in IN_TORCH:
        return tuning
    if tuning.fp8:
        from model.optimized.fp8 import check_fp8

        check_fp8(checkpoint.unet.device, checkpoint.unet.dtype)
    entry, config = checkpoint.entry, checkpoint.unet.config
    latent = VideoShape(entry.num_frames[0], entry.height, entry.width).latent(checkpoint.latent_channels)
    heads = config["num_attention_heads"]
    first = heads if isinstance(heads, int) else heads[0]
    shape = (latent.num_frames, first, latent.height * latent.width, config["block_out_channels"][0] // first)
    device, dtype = checkpoint.unet.device, checkpoint.unet.dtype
    attention = choose(tuning.attention, shape, device, dtype, pinned=cores.pinned)
    clip = (latent.num_frames, latent.height * latent.width, config["block_out_channels"][0])
    if device.type == "cpu" and tuning.kernels in (AUTO, "none"):
        kernels = "none"
    else:
        from model.optimized.kernels.choice import choose_kernels

        kernels = choose_kernels(tuning.kernels, clip, first, device, dtype, pinned=cores.pinned)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not cores.pinned  # each shape of convolution is timed once, at the warm-up
    return replace(tuning, attention=attention, kernels=kernels)


def make_denoiser(
    backend: str, checkpoint: Checkpoint, cores: CpuThreads | None = None, tuning: BackendOptions | None = None
) -> Denoiser:
    """A denoiser of the checkpoint's UNet on the backend called `backend`. The UNet is rewritten in place.

    Args:
        cores: of the CPU; None for as many as torch would use, not pinned.
        tuning: how it works in torch; None for the default.

    Raises:
        InvalidRequest: no backend is called that, or it does not fit (`backend_for`).
    """
    backend = backend_for(checkpoint.entry, backend)
    cores = cores or CpuThreads(torch.get_num_threads())
    return BACKENDS[backend](checkpoint, cores, resolve_options(backend, checkpoint, cores, tuning or BackendOptions()))
