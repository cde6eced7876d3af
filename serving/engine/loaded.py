"""A checkpoint on its device with its denoiser: what the engine holds of each model it serves."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import torch
from PIL import Image

from model.backends.makers import make_denoiser
from model.backends.protocol import Denoiser
from model.catalog import ModelEntry
from model.checkpoint import Checkpoint, load
from model.decode import decode
from model.rewrites import rewrite_exactly
from model.sampling.prepare import begin_row
from model.sampling.sampler import sample
from serving.engine.settings import EngineSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to sample; `settings` is how it was loaded."""

    checkpoint: Checkpoint
    denoiser: Denoiser
    settings: EngineSettings

    @property
    def entry(self) -> ModelEntry:
        """What its folder says of itself."""
        return self.checkpoint.entry


def load_model(entry: ModelEntry, settings: EngineSettings) -> LoadedModel:
    """Load a checkpoint and make its denoiser.

    An autoencoder that overflows in half precision (`force_upcast` in its config) stays in float32.

    Raises:
        CheckpointError: the folder is incomplete or does not fit.
        InvalidRequest: an unknown backend.
    """
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = automatic if settings.device == "auto" else settings.device
    checkpoint = load(entry, device=device, dtype=getattr(torch, settings.dtype))
    rewrite_exactly(checkpoint.vae)
    if settings.dtype == "float16" and checkpoint.vae.config["force_upcast"]:
        checkpoint.vae.float()
    return LoadedModel(checkpoint, make_denoiser(settings.backend, checkpoint), settings)


def warm_up(model: LoadedModel) -> None:
    """One step of a grey picture, and its decoding: what is slow only the first time is then done."""
    started = time.perf_counter()
    params = model.entry.resolve({"num_inference_steps": 1}, seed=0)
    grey = Image.new("RGB", (params.width, params.height), "grey")
    row = begin_row(model.checkpoint, params, [grey] * len(model.entry.task.pictures))
    row = sample(model.denoiser, row)
    decode(model.checkpoint.vae, row.latents, params.decode_chunk_size)
    logger.info("warmed %s in %.1f s", model.entry.name, time.perf_counter() - started)
