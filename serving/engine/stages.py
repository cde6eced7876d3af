"""The stages of a job before and after its denoiser calls: encode, check, finish, and the video manifest.

Shared by the engine and by `generate` on the command line. The manifest names all that the pixels depend on, so that a
video can be replayed.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version

import numpy as np
import torch
from PIL.Image import Image

from model.errors import GenerationFailed
from model.media.end_frames import restore_end_frames
from model.media.image import fit_picture, open_picture
from model.params import OutputFormat, Params
from model.sampling.row import Row
from model.sampling.sampler import prepare_row
from serving.engine.job import DecodeProgress
from serving.engine.loaded_model import LoadedModel
from serving.engine.protocol import EngineRequest


def _lora(model: LoadedModel, params: Params) -> dict[str, object] | None:
    """The adapter that a video was made with: beside its name and version, what it is."""
    use = params.adapter
    if use is None:
        return None
    entry = next(one for one in model.entry.loras if one.name == use.name)
    fields = {"name": use.name, "version": use.version, "scale": use.scale}
    return fields | {"rank": entry.rank, "alpha": entry.alpha, "base": entry.base}


def video_manifest(
    model: LoadedModel, params: Params, output_format: OutputFormat, decoding: DecodeProgress
) -> dict[str, object]:
    """Everything the pixels depend on, as JSON-ready values."""
    entry = model.entry
    settings = replace(model.settings, device=str(model.checkpoint.unet.device), threads=model.settings.cores)
    return {
        "task": entry.task.name,
        "model": entry.name,
        "model_version": entry.version,
        "params": asdict(params),
        "seed": params.seed,
        "output_format": output_format,
        "decode_chunks": decoding.sizes,
        "degraded": decoding.degraded,
        **settings.as_manifest(),
        "engine": {"host": platform.node(), "device": settings.device, "device_name": model.machine.device},
        "lora": _lora(model, params),
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("diffusers", "transformers", "av", "numpy", "pillow")},
        },
    }


def fitted_pictures(request: EngineRequest) -> tuple[Image, ...]:
    """The request's pictures, opened and fitted to the clip: once a job (Job.pictures).

    Raises:
        UnreadableImage, ImageTooLarge: one of them.
    """
    return tuple(fit_picture(open_picture(image), *request.params.picture_fit) for image in request.images)


def encode_request(model: LoadedModel, request: EngineRequest, pictures: Sequence[Image]) -> Row:
    """Encode phase: prompt or pictures become conditioning; the row is at its first noise level.

    Args:
        pictures: those of `fitted_pictures`.

    Raises:
        InvalidRequest: a setting the checkpoint cannot serve, or a LoRA that is not here.
    """
    params = request.params
    model.check_lora(params)
    with model.encoding():
        row = prepare_row(model.checkpoint, params, pictures)
    return replace(row, guidance_interval=model.settings.guidance_interval)


def synchronize(device: torch.device) -> None:
    """Wait for the work queued on the device's current stream, so that a clock read next has measured it."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def finished_frames(model: LoadedModel, pictures: Sequence[Image], decoding: DecodeProgress) -> np.ndarray:
    """What the request gets of its decoded frames, [T, H, W, 3] uint8; `pictures` are the ends of some tasks."""
    frames = decoding.frames()
    if not model.entry.task.restores_ends:
        return frames
    return restore_end_frames(frames, [np.asarray(picture) for picture in pictures], model.entry.frame_noise)


def check_finite(row: Row) -> None:
    """Refuse to decode latents that overflowed: better an error than a black video.

    Raises:
        GenerationFailed: they did.
    """
    if not bool(row.latents.isfinite().all()):
        raise GenerationFailed(
            f"the latents are not finite after {row.num_steps} steps; try less guidance, or float32", code="not_finite"
        )
