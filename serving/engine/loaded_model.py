"""A checkpoint on its device with its denoiser: what the engine holds of each model it serves."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from diffusers import AutoencoderKLTemporalDecoder

from model.backends.compiled import compile_blocks
from model.backends.registry import (
    AUTO,
    IN_TORCH,
    LORA_BACKENDS,
    backend_for,
    check_lora,
    fused_ops,
    make_denoiser,
    place_decoder,
    resolve_options,
)
from model.backends.wrappers import CfgParallelDenoiser, FixedBatchDenoiser, MaxBatchDenoiser
from model.catalog import ModelEntry
from model.checkpoint import Checkpoint, load
from model.denoiser import BackendOptions, CpuThreads, Denoiser, caching
from model.encoding_cache import EncodingCache
from model.errors import CheckpointError, InvalidRequest
from model.latent_preview import LatentColours, latent_colours
from model.lora.merge import switching_bytes, with_loras
from model.lora.weights import Lora, read_lora
from model.memory.cpu_offload import CpuOffload, offload_blocks
from model.memory.plan import VramPlan
from model.memory.tiled_decode import enable_tiled_decoding
from model.optimized.fused_blocks import fuse
from model.params import Params
from model.platform import DtypeName, is_intel, resolve_device, resolve_dtype, retain_freed_memory
from model.sampling.row import BatchKey, guidance_scale, needs_unconditional
from model.sampling.solvers import evaluations
from model.vae import upcast_encoder
from model.weights import Layout
from serving.engine.backend_choice import chosen_backend
from serving.engine.profile import Machine, Profile
from serving.engine.settings import EngineSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to sample.

    Args:
        settings: how it was loaded.
        colours: draws previews; None where the checkpoint has no such map.
        profile: what it costs on this machine; grows as it works.
        vram: how it stays within a budget of GPU memory; None where none was given.
        offload: CPU offload of encoders and autoencoder; None where they stay on the device.
    """

    checkpoint: Checkpoint
    denoiser: Denoiser
    settings: EngineSettings
    colours: LatentColours | None = None
    profile: Profile = field(default_factory=Profile)
    vram: VramPlan | None = None
    offload: CpuOffload | None = None

    @property
    def entry(self) -> ModelEntry:
        """What its folder says of itself."""
        return self.checkpoint.entry

    def key(self, params: Params) -> BatchKey:
        """The BatchKey of a request's row, before there is one."""
        latent = params.shape.latent(self.checkpoint.latent_channels)
        dtype = str(self.checkpoint.unet.dtype).removeprefix("torch.")
        return BatchKey(f"{self.entry.name}@{self.entry.version}", latent, dtype, params.adapter)

    def check_lora(self, params: Params) -> None:
        """Refuse a request for a LoRA that is not here, or not that version of it. Raises InvalidRequest."""
        check_lora(self.entry, self.settings.backend, params.adapter, self.settings.fp8)

    def batch_slots(self, params: Params) -> int:
        """Places a request's row takes in a denoiser call: 2 with guidance, 1 without."""
        scale = guidance_scale(self.entry.task.guidance, *params.guidance_range, params.num_frames)
        return 2 if needs_unconditional(scale) else 1

    def estimate(self, params: Params) -> float | None:
        """Seconds the request would take alone; None while nothing was measured."""
        calls = evaluations(params.solver, params.num_inference_steps)
        return self.profile.generation_s(params, self.key(params).latent, self.batch_slots(params), calls)

    def encoding(self) -> AbstractContextManager[None]:
        """Within it, what encodes is on the device."""
        encoder = self.checkpoint.conditioners.network
        return nullcontext() if self.offload is None else self.offload.on_device(encoder, self.checkpoint.vae)

    def decoding(self) -> AbstractContextManager[None]:
        """Within it, what decodes is on the device."""
        return nullcontext() if self.offload is None else self.offload.on_device(self.checkpoint.vae)

    def decode_chunk(self, requested: int) -> int:
        """Frames decoded at once where `requested` were requested."""
        return requested if self.vram is None else min(requested, self.vram.decode_chunk)

    @property
    def machine(self) -> Machine:
        """What its profile holds for."""
        device = self.checkpoint.unet.device
        settings = self.settings
        other = settings.device if is_intel(settings.device) else "cpu"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else other
        suffix = "" if settings.attention in ("auto", "sdpa") else f"+{settings.attention}"
        suffix += "" if settings.kernels in ("auto", "none") else "+kernels"
        suffix += "+fp8" if settings.fp8 else ""
        suffix += "" if settings.cfg_parallel is None else "+cfg2"
        suffix += "" if settings.reuse_every == 1 else f"+reuse{settings.reuse_every}"
        return Machine(
            name, settings.backend + suffix, settings.dtype, settings.cores, settings.deterministic, torch.__version__
        )


def load_model(entry: ModelEntry, settings: EngineSettings, *, one_request: bool = False) -> LoadedModel:
    """Load a checkpoint and make its denoiser.

    Where an autoencoder overflows in half precision (`force_upcast` in its config), its encoder stays in float32.

    Args:
        one_request: whether it serves one request, without previews: no encoding is stored for a later one.

    Raises:
        CheckpointError: the folder is incomplete or does not fit, or a LoRA that it offers does not.
        InvalidRequest: an unknown backend, or one that the folder has nothing for; a kernel or 8-bit floats that do
            not run here; a budget of GPU memory that is too small.
        MissingExtra: the backend, or 8-bit floats, need a package that is not installed.
    """
    settings = replace(settings, backend=backend_for(entry, _on_device(entry, settings)))
    device = resolve_device(settings.device)
    settings = replace(settings, dtype=resolve_dtype(settings.dtype, device))
    if device == "cpu":
        retain_freed_memory()
    checkpoint = load(
        entry,
        device=device,
        dtype=getattr(torch, settings.dtype),
        graphs_on=settings.device,
        layouts=_layouts(settings.backend),
    )
    if not one_request:
        checkpoint = replace(checkpoint, encodings=EncodingCache())
    # An export keeps its own dtype, whatever is requested.
    settings = replace(settings, dtype=cast(DtypeName, str(checkpoint.unet.dtype).removeprefix("torch.")))
    cores = CpuThreads(settings.cores, settings.deterministic)
    if not entry.exported:
        if settings.dtype == "float16" and checkpoint.vae.config["force_upcast"]:
            upcast_encoder(checkpoint.vae)
        place_decoder(settings.backend, checkpoint, cores, settings.device)
    options = resolve_options(
        settings.backend,
        checkpoint,
        cores,
        BackendOptions(settings.attention, settings.reuse_every, settings.kernels, settings.device, settings.fp8),
    )
    settings = replace(settings, attention=options.attention, kernels=options.kernels)
    second = second_copy(checkpoint, settings)
    if not entry.exported:
        optimize_vae(checkpoint.vae, settings.backend, checkpoint.unet.device, options.kernels)
    loras = _loras(checkpoint, settings)
    vram = plan_for(checkpoint, settings, loras)
    if vram is not None and vram.tiled_decode:
        enable_tiled_decoding(checkpoint.vae)
    denoiser = make_denoiser(settings.backend, checkpoint, cores, options)
    if vram is not None and vram.group_offload:
        offload_blocks(checkpoint.unet, torch.device(device))
    if vram is not None and vram.max_batch_size < 2:
        denoiser = limit_batch(denoiser, vram.max_batch_size)
    elif vram is not None:
        settings = replace(settings, max_batch=min(settings.max_batch or vram.max_batch_size, vram.max_batch_size))
    fixed = (settings.max_batch or FIXED_BATCH) if settings.deterministic and device != "cpu" else None
    if second is None:
        denoiser = _wrapped(denoiser, checkpoint, fixed, loras)
    else:
        fixed = None if fixed is None else max(1, fixed // 2)
        other = make_denoiser(settings.backend, second, cores, options)
        other = _wrapped(other, second, fixed, _loras(second, settings))
        denoiser = CfgParallelDenoiser(_wrapped(denoiser, checkpoint, fixed, loras), other, second.unet.device)
    offload = CpuOffload(torch.device(device)) if vram is not None and vram.offload else None
    if offload is not None:
        with LoadedModel(checkpoint, denoiser, settings, offload=offload).encoding():
            pass  # from now on they live where they are offloaded to
    colours = None if one_request else latent_colours(entry)
    return LoadedModel(checkpoint, denoiser, settings, colours, vram=vram, offload=offload)


def _wrapped(denoiser: Denoiser, checkpoint: Checkpoint, fixed: int | None, loras: Mapping[str, Lora]) -> Denoiser:
    """The denoiser of one device, at a fixed batch size if one is given, able to apply the LoRAs."""
    if fixed is not None:
        denoiser = FixedBatchDenoiser(denoiser, fixed)
    return with_loras(denoiser, checkpoint.unet, loras) if loras else denoiser


def second_copy(checkpoint: Checkpoint, settings: EngineSettings) -> Checkpoint | None:
    """The checkpoint with a copy of its denoiser on the second device, before anything is fused; None without one.

    Raises:
        InvalidRequest: the device is not here, or is the first; or the backend does not run weights in torch.
    """
    if settings.cfg_parallel is None:
        return None
    device = torch.device(resolve_device(settings.cfg_parallel))
    first = checkpoint.unet.device
    if device.type != first.type or (device.type == "cuda" and device.index == (first.index or 0)):
        raise InvalidRequest(
            f"--cfg-parallel {device} is to be another GPU than {first}, where the rest runs", param="cfg_parallel"
        )
    if checkpoint.entry.exported or settings.backend not in IN_TORCH:
        raise InvalidRequest(
            f"{settings.backend} runs on one device; take --denoiser torch, or leave --cfg-parallel out",
            param="cfg_parallel",
        )
    return replace(checkpoint, unet=copy.deepcopy(checkpoint.unet).to(device))


def _layouts(backend: str) -> dict[str, Layout]:
    """How networks' weights lie in memory for what is done with them next, so that they are written once."""
    if backend not in IN_TORCH:  # what reads weights to make graphs of them takes them as they were saved
        return {}
    return {"unet": "fused", "vae": "fused", "image_encoder": "together", "text_encoder": "together"}


def _on_device(entry: ModelEntry, settings: EngineSettings) -> str:
    """The backend requested, where it runs on the device requested; `auto` on one of Intel's devices is openvino.

    Raises:
        InvalidRequest: it does not run there.
    """
    if not is_intel(settings.device):
        return chosen_backend(entry, settings)
    if settings.backend not in (AUTO, "openvino"):
        raise InvalidRequest(
            f"{settings.device} is for OpenVINO; {settings.backend} runs on cpu or cuda: take --denoiser openvino, or "
            "another device",
            param="device",
        )
    return "openvino"


COMPILED = frozenset({"torch-compiled", "torch-graphed"})
"""Backends of the denoiser beside which the autoencoder's blocks are compiled too."""
FIXED_BATCH = 2
"""Places of every call in deterministic mode on a GPU: one guided request, the most that pays at full size."""


def optimize_vae(vae: AutoencoderKLTemporalDecoder, backend: str, device: torch.device, kernels: str = "none") -> None:
    """Fused blocks, in place; compiled ones beside a compiled denoiser on a GPU, where decoding pays for it.

    Args:
        kernels: names with commas, as `resolve_options` gives them.
    """
    fuse(vae, ops=fused_ops(kernels, device))
    if backend in COMPILED and device.type == "cuda":
        compile_blocks(vae)


def _loras(checkpoint: Checkpoint, settings: EngineSettings) -> dict[str, Lora]:
    """The LoRAs that the checkpoint offers, where its backend can apply them; elsewhere requests for them are refused.

    Raises:
        CheckpointError: one does not fit the network.
    """
    entry = checkpoint.entry
    if not entry.loras or settings.backend not in LORA_BACKENDS or settings.fp8:
        return {}
    here = f"{entry.name}@{entry.version}"
    for one in entry.loras:
        if one.task not in ("", entry.task.name):
            raise CheckpointError(
                f"the LoRA {one.name!r} ({one.path}) is for {one.task}, and {entry.name} is for {entry.task.name}",
                code="bad_lora",
                param="lora",
            )
        if one.base not in ("", here):
            logger.warning("the LoRA %s was trained on %s, and is served with %s", one.name, one.base, here)
    return {one.name: read_lora(one, checkpoint.unet) for one in entry.loras}


def plan_for(
    checkpoint: Checkpoint, settings: EngineSettings, loras: Mapping[str, Lora] | None = None
) -> VramPlan | None:
    """The plan for the settings' budget of GPU memory, at the checkpoint's own size; None where there is no budget.

    Raises:
        InvalidRequest: the budget is too small, or for a checkpoint that runs as graphs.
    """
    from model.memory.plan import GIB, needs_of, plan
    from model.shapes import VideoShape

    if settings.vram_budget_gib is None:
        return None
    entry = checkpoint.entry
    if entry.exported:
        raise InvalidRequest("an export has its memory laid out; leave --vram-budget out", param="vram_budget")
    latent = VideoShape(entry.num_frames[0], entry.height, entry.width).latent(checkpoint.latent_channels)
    requested = int(entry.defaults.get("decode_chunk_size", 8))
    budget = int(settings.vram_budget_gib * GIB)
    # A LoRA is merged into weights in place, which blocks that come and go would not keep.
    needs = needs_of(checkpoint, latent, can_group=settings.backend == "torch" and not loras)
    if loras:
        needs = replace(needs, unet=needs.unet + switching_bytes(checkpoint.unet, loras))
    return plan(needs, budget, latent.num_frames, requested_chunk=requested, overlap=True)


def limit_batch(denoiser: Denoiser, batch_slots: int) -> Denoiser:
    """A denoiser whose calls have fewer batch slots than a guided request takes.

    Raises:
        InvalidRequest: it keeps features by request.
    """
    if caching(denoiser) is not None:
        raise InvalidRequest(
            "reused features need both halves of a guided request in one call; raise --vram-budget, or reuse none",
            param="vram_budget",
        )
    return MaxBatchDenoiser(denoiser, batch_slots)
