"""What the parity gate feeds the networks: requests as a user would make them, noised to levels that sampling visits.

Legend: B batch slots, T frames, C channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.onnx import Component
from model.catalog import ModelEntry
from model.checkpoint import Checkpoint
from model.conditioning import clip_input, picture_to_pixels
from model.denoiser import DenoiserInputs
from model.encoders import ImageEncoder, TextEncoder
from model.media.image import fit_picture, open_picture
from model.params import Params
from model.sampling.sampler import append_dims, precondition, prepare_row
from model.vae import encode_mode

BATCHES = (1, 3)
"""Slots of a call; the graphs are traced at 2."""
CHUNKS = (1, 2, 5)
"""Frames of a decoder chunk; the graph is traced at 3."""
STEPS = 3
"""Of a whole video."""
CALIBRATION_LEVELS = 8
"""Noise levels, one slot each, at which activations are measured for FP8."""
PROMPTS = ("a harbour at dusk", "clouds over a green hill, seen from a train", "a fox")


@dataclass(frozen=True, slots=True)
class Samples:
    """Pictures of the video's size and prompts, at least max(BATCHES) of each."""

    pictures: tuple[Image.Image, ...]
    prompts: tuple[str, ...] = PROMPTS

    def request(self, entry: ModelEntry, index: int) -> tuple[Params, list[Image.Image]]:
        """The settings and pictures of request `index`, as model.sampling.sampler.prepare_row takes them."""
        width, height = self.pictures[0].size
        settings: dict[str, Any] = {"num_inference_steps": STEPS, "width": width, "height": height}
        if "prompt" in entry.task.settings:
            settings["prompt"] = self.prompts[index % len(self.prompts)]
        pictures = [self.pictures[(index + number) % len(self.pictures)] for number in range(len(entry.task.pictures))]
        return entry.resolve(settings, seed=index), pictures


def make_samples(height: int, width: int, files: Sequence[Path] = ()) -> Samples:
    """Samples from picture files (held-out ones, best), filled up with drawn pictures.

    Raises:
        UnreadableImage: a file is no picture.
    """
    files_fitted = [fit_picture(open_picture(file.read_bytes()), height, width, "crop") for file in files]
    drawn = [draw(height, width, seed) for seed in range(max(0, max(BATCHES) - len(files_fitted)))]
    return Samples((*files_fitted, *drawn))


def draw(height: int, width: int, seed: int) -> Image.Image:
    """A picture with smooth areas, edges and texture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    sky = random.uniform(0, 255, 3) * (1 - y) + random.uniform(0, 255, 3) * y
    waves = 40 * np.sin(random.uniform(5, 30) * x + random.uniform(5, 30) * y)
    inside = (x - random.uniform(0.3, 0.7)) ** 2 + (y - random.uniform(0.3, 0.7)) ** 2 < random.uniform(0.02, 0.1)
    pixels = np.where(inside, random.uniform(0, 255, 3) - waves, sky + waves) + random.normal(0, 4, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def real_inputs(
    checkpoint: Checkpoint, components: Sequence[Component], samples: Samples
) -> dict[str, list[dict[str, Tensor]]]:
    """Each network's inputs, in its graph's dtypes, at sizes other than the traced ones."""
    pixels = torch.stack([picture_to_pixels(picture) for picture in samples.pictures])
    makers: dict[str, Callable[[], list[dict[str, Tensor]]]] = {
        "unet": lambda: _denoiser_inputs(checkpoint, pixels, samples),
        "vae_encoder": lambda: [{"pixels": pixels[:count]} for count in BATCHES],
        "vae_decoder": lambda: _decoder_inputs(checkpoint, pixels),
        "image_encoder": lambda: _vision_inputs(checkpoint, pixels),
        "text_encoder": lambda: _text_inputs(checkpoint, samples),
    }
    with torch.inference_mode():
        return {part.name: [_typed(part, inputs) for inputs in makers[part.name]()] for part in components}


def _typed(component: Component, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {port.name: inputs[port.name].to(port.torch_dtype) for port in component.graph.inputs}


def _clean(checkpoint: Checkpoint, pixels: Tensor) -> Tensor:
    """Latents of the pictures as the diffusion model sees them, [B, C, h, w]."""
    return encode_mode(checkpoint.vae, pixels.to(checkpoint.vae.dtype)).float() * checkpoint.scaling_factor


def _denoiser_inputs(checkpoint: Checkpoint, pixels: Tensor, samples: Samples) -> list[dict[str, Tensor]]:
    slots = _denoiser_slots(checkpoint, pixels[: max(BATCHES)], samples)
    return [{name: value[:batch_size] for name, value in slots.items()} for batch_size in BATCHES]


def calibration_inputs(checkpoint: Checkpoint, denoiser: Component, samples: Samples) -> list[dict[str, Tensor]]:
    """The denoiser's inputs at more noise levels than the gate asks for, a call each, with every picture in turn."""
    turn = [samples.pictures[index % len(samples.pictures)] for index in range(CALIBRATION_LEVELS)]
    with torch.inference_mode():
        slots = _denoiser_slots(checkpoint, torch.stack([picture_to_pixels(picture) for picture in turn]), samples)
    calls = [{name: value[index : index + 1] for name, value in slots.items()} for index in range(len(turn))]
    return [_typed(denoiser, call) for call in calls]


def _denoiser_slots(checkpoint: Checkpoint, pixels: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Batch slots at noise levels over the checkpoint's range: a still clip of each picture, under its row's noise."""
    count, noise = len(pixels), checkpoint.noise
    rows = [prepare_row(checkpoint, *samples.request(checkpoint.entry, index)) for index in range(count)]
    sigma = torch.tensor(np.geomspace(noise.sigma_max, noise.sigma_min, count), dtype=torch.float32)
    c = precondition(sigma)
    unit = torch.stack([row.latents / (row.sigmas[0] ** 2 + 1) ** 0.5 for row in rows])
    noisy = _clean(checkpoint, pixels)[:, None] + append_dims(sigma, unit) * unit
    scaled = noisy * append_dims(c.c_in, noisy)
    return DenoiserInputs.stack(list(scaled), list(c.c_noise), [row.conditions[-1] for row in rows]).as_dict()


def _decoder_inputs(checkpoint: Checkpoint, pixels: Tensor) -> list[dict[str, Tensor]]:
    clip = _clean(checkpoint, pixels).repeat(2, 1, 1, 1) / checkpoint.scaling_factor
    return [{"latents": clip[:frames]} for frames in CHUNKS]


def _vision_inputs(checkpoint: Checkpoint, pixels: Tensor) -> list[dict[str, Tensor]]:
    encoder = cast(ImageEncoder, checkpoint.conditioners)
    normalised = clip_input(pixels, encoder.mean, encoder.std)
    return [{"pixels": normalised[:count]} for count in BATCHES]


def _text_inputs(checkpoint: Checkpoint, samples: Samples) -> list[dict[str, Tensor]]:
    tokenizer = cast(TextEncoder, checkpoint.conditioners).tokenizer
    length = int(tokenizer.model_max_length)
    tokens = tokenizer(list(samples.prompts), padding="max_length", max_length=length, return_tensors="pt")
    return [{"tokens": tokens.input_ids[:count]} for count in BATCHES]
