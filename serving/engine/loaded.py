"""A checkpoint on its device with its denoiser: what the engine holds of each model it serves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch

from model.backends.makers import backend_for, make_denoiser
from model.backends.protocol import Cores, Denoiser
from model.catalog import ModelEntry
from model.checkpoint import Checkpoint, load
from model.params import Params
from model.preview import LatentColours, latent_colours
from model.rewrites import rewrite_exactly
from model.sampling.guidance import guidance_scale, needs_unconditional
from model.sampling.row import BatchKey
from model.sampling.solvers import evaluations
from serving.engine.profile import Machine, Profile
from serving.engine.settings import DtypeName, EngineSettings


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to sample.

    Args:
        settings: how it was loaded.
        colours: draws previews; None where the checkpoint has no such map.
        profile: what it costs on this machine; grows as it works.
    """

    checkpoint: Checkpoint
    denoiser: Denoiser
    settings: EngineSettings
    colours: LatentColours | None = None
    profile: Profile = field(default_factory=Profile)

    @property
    def entry(self) -> ModelEntry:
        """What its folder says of itself."""
        return self.checkpoint.entry

    def key(self, params: Params) -> BatchKey:
        """The BatchKey of a request's row, before there is one."""
        latent = params.shape.latent(self.checkpoint.latent_channels)
        dtype = str(self.checkpoint.unet.dtype).removeprefix("torch.")
        return BatchKey(f"{self.entry.name}@{self.entry.version}", latent, dtype)

    def places(self, params: Params) -> int:
        """Places a request's row takes in a denoiser call: 2 with guidance, 1 without."""
        scale = guidance_scale(self.entry.task.guidance, *params.guidance_range, params.num_frames)
        return 2 if needs_unconditional(scale) else 1

    def estimate(self, params: Params) -> float | None:
        """Seconds the request would take alone; None while nothing was measured."""
        calls = evaluations(params.solver, params.num_inference_steps)
        return self.profile.generation_s(params, self.key(params).latent, self.places(params), calls)

    @property
    def machine(self) -> Machine:
        """What its profile holds for."""
        device = self.checkpoint.unet.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        settings = self.settings
        return Machine(
            name, settings.backend, settings.dtype, settings.cores, settings.deterministic, torch.__version__
        )


def load_model(entry: ModelEntry, settings: EngineSettings) -> LoadedModel:
    """Load a checkpoint and make its denoiser.

    An autoencoder that overflows in half precision (`force_upcast` in its config) stays in float32.

    Raises:
        CheckpointError: the folder is incomplete or does not fit.
        InvalidRequest: an unknown backend, or one that the folder has nothing for.
    """
    settings = replace(settings, backend=backend_for(entry, settings.backend))
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = automatic if settings.device == "auto" else settings.device
    checkpoint = load(entry, device=device, dtype=getattr(torch, settings.dtype))
    # An export keeps its own dtype, whatever is asked for.
    settings = replace(settings, dtype=cast(DtypeName, str(checkpoint.unet.dtype).removeprefix("torch.")))
    rewrite_exactly(checkpoint.vae)
    if settings.dtype == "float16" and checkpoint.vae.config["force_upcast"]:
        checkpoint.vae.float()
    denoiser = make_denoiser(settings.backend, checkpoint, Cores(settings.cores, settings.deterministic))
    if settings.deterministic and checkpoint.unet.device.type != "cpu":
        from model.backends.padded import PaddedDenoiser

        denoiser = PaddedDenoiser(denoiser, settings.max_batch or PADDED_PLACES)
    return LoadedModel(checkpoint, denoiser, settings, latent_colours(entry))


PADDED_PLACES = 2
"""Places of every call in deterministic mode on a GPU: one guided request, the most that pays at full size."""
