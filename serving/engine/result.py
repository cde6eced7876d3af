"""What a result says of how it was made: a manifest to repeat it by."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version

import torch

from model.params import OutputFormat, Params
from serving.engine.decoding import Decoding
from serving.engine.loaded import LoadedModel


def _lora(model: LoadedModel, params: Params) -> dict[str, object] | None:
    """The adapter that a video was made with: beside its name and version, what it is."""
    use = params.adapter
    if use is None:
        return None
    entry = next(one for one in model.entry.loras if one.name == use.name)
    told = {"name": use.name, "version": use.version, "scale": use.scale}
    return told | {"rank": entry.rank, "alpha": entry.alpha, "base": entry.base}


def build_manifest(
    model: LoadedModel, params: Params, output_format: OutputFormat, decoding: Decoding
) -> dict[str, object]:
    """Everything the pixels depend on, as JSON-ready values."""
    entry, settings = model.entry, model.settings
    return {
        "task": entry.task.name,
        "model": entry.name,
        "model_version": entry.version,
        "params": asdict(params),
        "seed": params.seed,
        "output_format": output_format,
        "decode_chunks": decoding.sizes,
        "degraded": decoding.degraded,
        "backend": settings.backend,
        "device": str(model.checkpoint.unet.device),
        "dtype": settings.dtype,
        "threads": settings.cores,
        "deterministic": settings.deterministic,
        "attention": settings.attention,
        "reuse_every": settings.reuse_every,
        "guidance_interval": None if settings.guidance_interval is None else list(settings.guidance_interval),
        "vram_budget_gib": settings.vram_budget_gib,
        "lora": _lora(model, params),
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("diffusers", "transformers", "av", "numpy", "pillow")},
        },
    }
