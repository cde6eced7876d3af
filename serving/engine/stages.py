"""The phases of one job before and after its steps, shared by the engine and by `generate` on the command line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL.Image import Image

from model.errors import GenerationFailed
from model.held import hold_ends
from model.image import fit_picture, open_picture
from model.params import TextToVideoParams
from model.sampling.prepare import begin_row
from model.sampling.row import Row
from serving.engine.decoding import Decoding
from serving.engine.loaded import LoadedModel
from serving.engine.protocol import EngineRequest


def encode_request(model: LoadedModel, request: EngineRequest) -> Row:
    """Encode phase: prompt or pictures, fitted to the clip, become conditioning; the row is at its first noise level.

    Raises:
        UnreadableImage, ImageTooLarge: a picture.
        InvalidRequest: a setting the checkpoint cannot serve, or a LoRA that is not here.
    """
    params = request.params
    model.check_lora(params)
    fitted = _fitted(request)
    with model.encoding():
        row = begin_row(model.checkpoint, params, fitted)
    return replace(row, interval=model.settings.guidance_interval)


def _fitted(request: EngineRequest) -> list[Image]:
    params = request.params
    opened = [open_picture(image) for image in request.images]
    if isinstance(params, TextToVideoParams):
        return opened
    return [fit_picture(picture, params.height, params.width, params.resize_mode) for picture in opened]


def finished_frames(model: LoadedModel, request: EngineRequest, decoding: Decoding) -> np.ndarray:
    """What the request gets of its decoded frames, [T, H, W, 3] uint8: between given ends, with the ends held."""
    frames = decoding.frames()
    if not model.entry.task.holds_ends:
        return frames
    return hold_ends(frames, [np.asarray(picture) for picture in _fitted(request)], model.entry.frame_noise)


def check_finite(row: Row) -> None:
    """Refuse to decode latents that overflowed: better an error than a black video.

    Raises:
        GenerationFailed: they did.
    """
    if not bool(row.latents.isfinite().all()):
        raise GenerationFailed(
            f"the latents are not finite after {row.total} steps; try less guidance, or float32", code="not_finite"
        )
