"""Conditioning: a request's pictures or prompt become cross-attention context, concatenated latents and a vector.

The task's spec names the builder of the first two (`TaskSpec.conditioning`) and the scalars of the vector. As published
(paper, section 4 and appendix D): a still's latent is repeated over the frames WITHOUT the latent scaling factor, after
a little noise in PIXEL space; two stills stand at the ends of the clip, {z_start, z_m, ..., z_m, z_end} with z_m
learned and a binary mask, after noise in LATENT space (so they are scaled: noise is measured against unit variance);
the vector holds fps - 1 and the others as they are. A prompt's tokens are the text encoder's last hidden states,
padding included.

Legend: B pictures, T frames, C latent channels, K concatenated channels, N context tokens, D their width, V scalars,
H, W pixels, S CLIP's side; h, w latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from model.checkpoint import Checkpoint
from model.denoiser import Conditioning
from model.encoders import ImageEncoder, ImagePairEncoder, TextEncoder
from model.errors import InvalidRequest
from model.params import Params, PictureParams, TextToVideoParams
from model.tasks import VectorField
from model.vae import encode_mode


def between_ends(
    start: Float[Tensor, "C h w"], end: Float[Tensor, "C h w"], mask: Float[Tensor, " C"], num_frames: int
) -> Float[Tensor, "T C+1 h w"]:
    """Frame interpolation's concatenated channels: both ends, the mask embedding between, and a binary mask.

    Args:
        start, end: latents times the scaling factor.
        mask: the learned embedding of a frame between, the same at every position; training differentiates in it.

    Raises:
        InvalidRequest: fewer than two frames.
    """
    if num_frames < 2:
        raise InvalidRequest(f"two ends need at least 2 frames, not {num_frames}", param="num_frames")
    inner = mask.to(start)[None, :, None, None].expand(num_frames - 2, -1, *start.shape[1:])
    is_end = start.new_zeros(num_frames, 1, *start.shape[1:])
    is_end[0] = is_end[-1] = 1.0
    return torch.cat([torch.cat([start[None], inner, end[None]]), is_end], dim=1)


CLIP_SIZE = 224


def picture_to_pixels(picture: Image) -> Float[Tensor, "3 H W"]:
    """RGB pixels in [-1, 1], float32 on the CPU."""
    unit = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0
    return torch.from_numpy(unit).permute(2, 0, 1) * 2.0 - 1.0


def fitting_pixels(name: str, picture: Image, height: int, width: int) -> Float[Tensor, "3 H W"]:
    """A conditioning picture's pixels.

    Raises:
        InvalidRequest: it is not of the clip's size; `param` is its name.
    """
    if picture.size != (width, height):
        raise InvalidRequest(
            f"the picture is {picture.width}x{picture.height}, the clip {width}x{height}: "
            "fit it first (model.media.image.fit_picture)",
            param=name,
        )
    return picture_to_pixels(picture)


def image_context(encoder: ImageEncoder, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """CLIP embeddings of pictures in [-1, 1], float32."""
    network = encoder.network
    normalised = clip_input(pixels, encoder.mean, encoder.std)
    embeds: Tensor = network(normalised.to(network.device, network.dtype)).image_embeds
    return embeds.float()


def image_latents(vae: AutoencoderKLTemporalDecoder, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """The autoencoder's MODE of pictures in [-1, 1], NOT multiplied by its scaling factor, float32."""
    return encode_mode(vae, pixels.to(vae.device, vae.dtype)).float()


def clip_input(
    pixels: Float[Tensor, "B 3 H W"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "B 3 S S"]:
    """Pictures in [-1, 1] as the CLIP encoder wants them: antialiased to 224 x 224, then normalised.

    The resize runs on [-1, 1] values, before the shift to [0, 1], as the published pipelines do: bicubic interpolation
    overshoots, and what it overshoots is not clamped.
    """
    small = (resize_antialiased(pixels, CLIP_SIZE, CLIP_SIZE) + 1.0) / 2.0
    return (small - small.new_tensor(mean)[:, None, None]) / small.new_tensor(std)[:, None, None]


def resize_antialiased(pixels: Float[Tensor, "B C H W"], height: int, width: int) -> Float[Tensor, "B C h w"]:
    """Bicubic with aligned corners, after a Gaussian blur of (shrink factor - 1) / 2 pixels in each direction."""
    blurred = _blur(_blur(pixels, pixels.shape[-1] / width, vertical=False), pixels.shape[-2] / height, vertical=True)
    return functional.interpolate(blurred, size=(height, width), mode="bicubic", align_corners=True)


def _blur(pixels: Tensor, factor: float, *, vertical: bool) -> Tensor:
    """A one-directional Gaussian blur for shrinking by `factor`, edges reflected; none where nothing shrinks."""
    if factor <= 1:
        return pixels
    deviation = max((factor - 1) / 2, 0.001)
    size = int(max(4 * deviation, 3)) | 1
    radius = size // 2
    offset = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    weight = torch.exp(-offset.square() / (2 * deviation**2))
    weight = weight / weight.sum()
    channels = pixels.shape[1]
    shape, pad = ((size, 1), (0, 0, radius, radius)) if vertical else ((1, size), (radius, radius, 0, 0))
    padded = functional.pad(pixels, pad, mode="reflect")
    return functional.conv2d(padded, weight.view(1, 1, *shape).expand(channels, 1, *shape), groups=channels)


def text_context(encoder: TextEncoder, prompt: str) -> Float[Tensor, "N D"]:
    """The tokens of a prompt, padded to the tokenizer's length, float32.

    Raises:
        InvalidRequest: the prompt is longer than what the text encoder reads; nothing is cut off silently.
    """
    longest = int(encoder.tokenizer.model_max_length)
    count = len(encoder.tokenizer(prompt).input_ids)
    if count > longest:
        raise InvalidRequest(
            f"the prompt takes {count} tokens, the text encoder reads {longest}; shorten it",
            param="prompt",
            code="prompt_too_long",
        )
    tokens = encoder.tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")
    network = encoder.network
    # As diffusers' pipelines do: padding is attended to unless the encoder's own config says otherwise.
    masked = bool(getattr(network.config, "use_attention_mask", False))
    mask = tokens.attention_mask.to(network.device) if masked else None
    hidden: Tensor = network(tokens.input_ids.to(network.device), attention_mask=mask).last_hidden_state
    return hidden[0].to(torch.float32)


def condition(
    checkpoint: Checkpoint, params: Params, pictures: Sequence[Image], noise: Float[Tensor, "..."]
) -> Conditioning:
    """A request's conditioning, on the checkpoint's device.

    Args:
        pictures: in the order of the task's spec; RGB, already of the clip's height and width.
        noise: unit-variance augmentation noise, as `model.sampling.sampler.draw_noise` lays it out for the task;
            `noise_aug_strength` scales it.

    Raises:
        InvalidRequest: settings of another task, a picture too many or too few or of another size, or a prompt beyond
            what the text encoder reads.
    """
    task = checkpoint.entry.task
    if type(params) is not task.params:
        raise InvalidRequest(f"{checkpoint.entry.name} serves {task.name}, not {type(params).__name__}", param="model")
    if len(pictures) != len(task.pictures):
        raise InvalidRequest(f"{task.name} takes {len(task.pictures)} pictures, not {len(pictures)}", param="image")
    pixels = [
        fitting_pixels(name, picture, params.height, params.width)
        for name, picture in zip(task.pictures, pictures, strict=True)
    ]
    build: ConditioningBuilder = task.conditioning_builder()
    context, concat = build(checkpoint, params, pixels, noise)
    scalars = [_scalar(name, params) for name in task.vector]
    vector = torch.tensor(scalars, dtype=torch.float32, device=checkpoint.unet.device)
    return Conditioning(context, concat, vector)


ConditioningBuilder = Callable[[Checkpoint, Any, list[Tensor], Tensor], tuple[Tensor, Tensor]]
"""Of a checkpoint of the task, its settings, its pictures' pixels [3, H, W] in [-1, 1] and the augmentation noise:
context [N, D] and concat [T, K, h, w]."""


def image_conditioning(
    checkpoint: Checkpoint, params: PictureParams, pixels: list[Float[Tensor, "3 H W"]], noise: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "T K h w"]]:
    """The ConditioningBuilder of a still: its embedding, and its latent in every frame, unscaled."""
    stills = torch.stack(pixels)
    noisy = stills + params.noise_aug_strength * noise
    latents = checkpoint.encoded("latent", noisy, lambda: image_latents(checkpoint.vae, noisy))
    return _embeddings(checkpoint, stills), latents.expand(params.num_frames, -1, -1, -1)


def image_pair_conditioning(
    checkpoint: Checkpoint, params: PictureParams, pixels: list[Float[Tensor, "3 H W"]], noise: Float[Tensor, "..."]
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "T K h w"]]:
    """The ConditioningBuilder of a clip's two ends: their embeddings, their scaled latents and the mask between."""
    encoder = cast(ImagePairEncoder, checkpoint.conditioners)
    stills = torch.stack(pixels)
    encoded = checkpoint.encoded("latent", stills, lambda: image_latents(checkpoint.vae, stills))
    latents = encoded * checkpoint.scaling_factor
    start, end = latents + params.noise_aug_strength * noise.to(latents.device)
    return _embeddings(checkpoint, stills), between_ends(start, end, encoder.mask, params.num_frames)


def _embeddings(checkpoint: Checkpoint, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """The embeddings of a request's pictures."""
    encoder = cast(ImageEncoder | ImagePairEncoder, checkpoint.conditioners)
    return checkpoint.encoded("embedding", pixels, lambda: image_context(encoder, pixels))


def text_conditioning(
    checkpoint: Checkpoint,
    params: TextToVideoParams,
    pixels: list[Float[Tensor, "3 H W"]],  # noqa: ARG001 - there are none
    noise: Float[Tensor, "..."],  # noqa: ARG001 - it is empty
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "T K h w"]]:
    """The ConditioningBuilder of a prompt: its tokens, and nothing concatenated."""
    latent = params.shape.latent(checkpoint.latent_channels)
    concat = torch.zeros(params.num_frames, 0, latent.height, latent.width, device=checkpoint.unet.device)
    encoder = cast(TextEncoder, checkpoint.conditioners)
    return checkpoint.encoded("prompt", params.prompt, lambda: text_context(encoder, params.prompt)), concat


def _scalar(name: VectorField, params: Params) -> float:
    """A scalar of the vector, as the network was trained on it."""
    value = float(getattr(params, name))
    return value - 1 if name == "fps" else value
