"""What a checkpoint is, what it lacks, and how it would run here: the report of `stillmotion check`. Loads no weights.

Files are examined by their headers; memory and arithmetic are counted on the meta device (model.memory); seconds are
those a stored profile has, else estimated from the counted arithmetic and the device's measured rate.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from model.catalog import NETWORKS, ModelEntry
from model.checkpoint import Checkpoint, load
from model.errors import CheckpointError, InvalidRequest
from model.memory.plan import GIB, MemoryNeeds, VramPlan, needs_of, plan
from model.params import Params
from model.platform import resolve_device, resolve_dtype
from model.sampling.row import guidance_scale, needs_unconditional
from model.sampling.solvers import evaluations
from model.sources.hub import model_card
from model.sources.layout import Precision, component_files, parameters_in
from model.vae import upcast_encoder
from serving.engine.profile import Machine, read_profile
from serving.engine.settings import EngineSettings
from serving.engine.warmup import estimate

CARDS_GIB: Final = (8, 12, 16, 24)
"""Sizes of GPU memory that plans are printed for."""


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """The weight files of one network.

    Args:
        variant: as in their names; empty for the default one.
        dtypes: of the weights in them, in safetensors' words.
    """

    name: str
    variant: str
    files: int
    dtypes: tuple[str, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CardPlan:
    """How a checkpoint fits a card, at its default size; `plan` is None where it does not, and `why` says why."""

    gib: float
    plan: VramPlan | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class RunReport:
    """How a checkpoint would run on one device.

    Args:
        backends: denoiser backends that can run it there.
        needed_bytes: memory of one guided request, with everything on the device.
        memory_bytes: what the device has; None where it is not here.
        seconds: of one video with the defaults; None where nothing is known.
        measured: whether the seconds are a profile's, not estimated.
        plan: for the budget, or for the whole card; None on a CPU.
    """

    device: str
    dtype: str
    backends: tuple[str, ...]
    needed_bytes: int
    memory_bytes: int | None
    seconds: float | None
    measured: bool
    plan: CardPlan | None


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What was found in a folder, and what keeps it from being served."""

    components: tuple[ComponentReport, ...]
    problems: tuple[str, ...]
    licence: str | None


def examine(folder: Path, precision: Precision, networks: tuple[str, ...] = NETWORKS[:3]) -> FolderReport:
    """Read every weight file's header; each problem is named, not only the first."""
    components, problems = [], []
    for name in networks:
        try:
            files = component_files(folder / name, precision)
            parameters, dtypes = parameters_in(files.files)
        except CheckpointError as error:
            problems.append(error.message)
            continue
        size = sum(file.stat().st_size for file in files.files)
        components.append(
            ComponentReport(name, files.variant, len(files.files), tuple(sorted(dtypes)), parameters, size)
        )
    card = model_card(folder)
    return FolderReport(tuple(components), tuple(problems), card.get("license_name") or card.get("license"))


def networks_of(entry: ModelEntry) -> tuple[str, ...]:
    """The folders of its networks."""
    return ("unet", "vae", "text_encoder" if entry.task.context == "text" else "image_encoder")


def how_it_runs(entry: ModelEntry, settings: EngineSettings) -> RunReport:
    """How the checkpoint would run with these settings.

    Raises:
        CheckpointError: its configs are not those of a network that is served.
    """
    device, dtype = device_and_dtype(settings)
    checkpoint = on_meta(entry, dtype)
    params = entry.resolve(dict(entry.task.sample_request), seed=0)
    needs = needs_of(checkpoint, params.shape.latent(checkpoint.latent_channels), can_group=device != "cpu")
    weights, slots = needs.unet + needs.vae + needs.conditioners, _slots(entry, params)
    here = device == "cpu" or torch.cuda.is_available()
    fitted = None
    if device != "cpu":
        total = _memory(device) if here else None
        gib = settings.vram_budget_gib or (None if total is None else total / GIB)
        fitted = None if gib is None else card_plan(needs, params, gib)
    seconds, measured = _seconds(checkpoint, params, device, dtype, settings, slots) if here else (None, False)
    return RunReport(
        device=device,
        dtype=dtype,
        backends=_backends(device),
        needed_bytes=weights + max(needs.denoise(slots), needs.decode(_chunk(params))),
        memory_bytes=_memory(device) if here else None,
        seconds=seconds,
        measured=measured,
        plan=fitted,
    )


def device_and_dtype(settings: EngineSettings) -> tuple[str, Precision]:
    """As resolved for serving, but for a CUDA device that need not be here."""
    if settings.device.startswith("cuda"):
        return settings.device, resolve_dtype("float16" if settings.dtype == "auto" else settings.dtype, "cpu")
    device = resolve_device(settings.device)
    return device, resolve_dtype(settings.dtype, device)


def card_plans(entry: ModelEntry) -> list[CardPlan]:
    """How the checkpoint fits cards of common sizes at its default size, in float16."""
    checkpoint = on_meta(entry, "float16")
    params = entry.resolve(dict(entry.task.sample_request), seed=0)
    needs = needs_of(checkpoint, params.shape.latent(checkpoint.latent_channels), can_group=True)
    return [card_plan(needs, params, gib) for gib in CARDS_GIB]


def card_plan(needs: MemoryNeeds, params: Params, gib: float) -> CardPlan:
    """How a checkpoint of these needs fits a card."""
    try:
        way = plan(needs, int(gib * GIB), params.num_frames, requested_chunk=params.decode_chunk_size, overlap=True)
    except InvalidRequest as error:
        return CardPlan(gib, None, error.message.partition(";")[0])
    return CardPlan(gib, way)


def on_meta(entry: ModelEntry, dtype: Precision) -> Checkpoint:
    """The checkpoint on the meta device: shapes and dtypes, without weights."""
    checkpoint = load(entry, device="meta", dtype=getattr(torch, dtype))
    if dtype == "float16" and checkpoint.vae.config["force_upcast"]:
        upcast_encoder(checkpoint.vae)
    return checkpoint


def _slots(entry: ModelEntry, params: Params) -> int:
    scale = guidance_scale(entry.task.guidance, *params.guidance_range, params.num_frames)
    return 2 if needs_unconditional(scale) else 1


def _chunk(params: Params) -> int:
    return min(params.decode_chunk_size, params.num_frames)


def _seconds(
    checkpoint: Checkpoint, params: Params, device: str, dtype: str, settings: EngineSettings, slots: int
) -> tuple[float | None, bool]:
    """Of one video, and whether they were measured."""
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    machine = Machine(name, "torch", dtype, settings.cores, settings.deterministic, torch.__version__)
    stored = read_profile(checkpoint.entry.path, machine)
    profile = stored or estimate(checkpoint, params, _chunk(params), where)
    latent = params.shape.latent(checkpoint.latent_channels)
    calls = evaluations(params.solver, params.num_inference_steps)
    return profile.generation_s(params, latent, slots, calls), stored is not None


def _memory(device: str) -> int:
    if device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)


def _backends(device: str) -> tuple[str, ...]:
    """Backends that run weights (not an export's graphs) on the device."""
    runtimes = ("onnxruntime", "openvino") if find_spec("onnxscript") else ()
    graphs = tuple(name for name in runtimes if find_spec(name))
    return ("torch", "torch-compiled", *(("torch-graphed",) if device != "cpu" else graphs))
