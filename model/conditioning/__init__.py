"""What a request becomes for the network: cross-attention context, concatenated latents, and a vector of scalars.

All three follow from the task's spec: `context` says what is read (text, one picture, two), `concat_latents` and
`augmentation` what stands beside the noisy latents, `vector` which scalars are told. As published (paper, section 4
and appendix D): a still's latent is repeated over the frames WITHOUT the latent scaling factor, after a little noise
in PIXEL space; two stills stand at the ends of the clip, with noise in LATENT space (model.conditioning); the
vector holds fps - 1 and the others as they are.

Legend: T frames, P pictures, K concatenated channels, N context tokens, D their width, V scalars; h, w latent.

Frame interpolation's channels beside the noisy latents: both ends, a learned embedding between them, and a mask.

Paper, appendix D: {z_start, z_m, ..., z_m, z_end}, with z_m learned, and a binary mask. Here the ends are latents as
the diffusion model sees them (times the scaling factor), so that noise in latent space is measured against unit
variance; the mask is 1 where a frame is given.

Legend: T frames, C latent channels; h, w latent.

Pictures as the networks take them: pixels in [-1, 1], CLIP's input and embedding, the autoencoder's latents.

Legend: B pictures, C channels, H, W pixels, S CLIP's side, D embedding width; h, w latent.

A prompt becomes cross-attention tokens: the text encoder's last hidden states, padding included.

Legend: N tokens, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence

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
from model.params import PARAMS, Params, TextToVideoParams
from model.tasks import VectorField
from model.vae import encode_mode


def between_ends(
    start: Float[Tensor, "C h w"], end: Float[Tensor, "C h w"], mask: Float[Tensor, " C"], num_frames: int
) -> Float[Tensor, "T C+1 h w"]:
    """What is concatenated, frame by frame; differentiable in `mask`, which training learns.

    Args:
        mask: the learned embedding of a frame that is not given, the same at every place.

    Raises:
        InvalidRequest: fewer than two frames.
    """
    if num_frames < 2:
        raise InvalidRequest(f"two ends need at least 2 frames, not {num_frames}", param="num_frames")
    inner = mask.to(start)[None, :, None, None].expand(num_frames - 2, -1, *start.shape[1:])
    given = start.new_zeros(num_frames, 1, *start.shape[1:])
    given[0] = given[-1] = 1.0
    return torch.cat([torch.cat([start[None], inner, end[None]]), given], dim=1)


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


def image_context(tower: ImageEncoder, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
    """CLIP embeddings of pictures in [-1, 1], float32."""
    encoder = tower.encoder
    seen = clip_input(pixels, tower.mean, tower.std)
    embeds: Tensor = encoder(seen.to(encoder.device, encoder.dtype)).image_embeds
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


def text_context(tower: TextEncoder, prompt: str) -> Float[Tensor, "N D"]:
    """The tokens of a prompt, padded to the tokenizer's length, float32.

    Raises:
        InvalidRequest: the prompt is longer than what the text encoder reads; nothing is cut off silently.
    """
    longest = int(tower.tokenizer.model_max_length)
    count = len(tower.tokenizer(prompt).input_ids)
    if count > longest:
        raise InvalidRequest(
            f"the prompt takes {count} tokens, the text encoder reads {longest}; shorten it",
            param="prompt",
            code="prompt_too_long",
        )
    told = tower.tokenizer(prompt, padding="max_length", max_length=longest, return_tensors="pt")
    encoder = tower.encoder
    # As diffusers' pipelines do: padding is attended to unless the encoder's own config says otherwise.
    masked = bool(getattr(encoder.config, "use_attention_mask", False))
    mask = told.attention_mask.to(encoder.device) if masked else None
    hidden: Tensor = encoder(told.input_ids.to(encoder.device), attention_mask=mask).last_hidden_state
    return hidden[0].to(torch.float32)


def condition(
    checkpoint: Checkpoint, params: Params, pictures: Sequence[Image], noise: Float[Tensor, "..."]
) -> Conditioning:
    """Everything the network is told of one request, on the checkpoint's device.

    Args:
        pictures: in the order of the task's spec; RGB, already of the clip's height and width.
        noise: unit-variance augmentation noise, as `model.sampling.prepare.draw_noise` lays it out for the task;
            `noise_aug_strength` scales it.

    Raises:
        InvalidRequest: settings of another task, a picture too many or too few or of another size, or a prompt beyond
            what the text encoder reads.
    """
    task = checkpoint.entry.task
    if type(params) is not PARAMS[task.name]:
        raise InvalidRequest(f"{checkpoint.entry.name} serves {task.name}, not {type(params).__name__}", param="model")
    if len(pictures) != len(task.pictures):
        raise InvalidRequest(f"{task.name} takes {len(task.pictures)} pictures, not {len(pictures)}", param="image")
    pixels = [
        fitting_pixels(name, picture, params.height, params.width)
        for name, picture in zip(task.pictures, pictures, strict=True)
    ]
    return Conditioning(
        context=_context(checkpoint, params, pixels),
        concat=_concat(checkpoint, params, pixels, noise),
        vector=torch.tensor(
            [_scalar(name, params) for name in task.vector], dtype=torch.float32, device=checkpoint.unet.device
        ),
    )


def _context(checkpoint: Checkpoint, params: Params, pixels: list[Tensor]) -> Float[Tensor, "N D"]:
    conditioners = checkpoint.conditioners
    if isinstance(conditioners, TextEncoder):
        assert isinstance(params, TextToVideoParams)
        return text_context(conditioners, params.prompt)
    tower = conditioners if isinstance(conditioners, ImageEncoder) else conditioners.vision
    return image_context(tower, torch.stack(pixels))


def _concat(
    checkpoint: Checkpoint, params: Params, pixels: list[Tensor], noise: Float[Tensor, "..."]
) -> Float[Tensor, "T K h w"]:
    conditioners, vae = checkpoint.conditioners, checkpoint.vae
    if isinstance(params, TextToVideoParams):
        latent = params.shape.latent(checkpoint.latent_channels)
        return torch.zeros(params.num_frames, 0, latent.height, latent.width, device=checkpoint.unet.device)
    if isinstance(conditioners, ImagePairEncoder):
        latents = image_latents(vae, torch.stack(pixels)) * checkpoint.scaling_factor
        start, end = latents + params.noise_aug_strength * noise.to(latents.device)
        return between_ends(start, end, conditioners.mask, params.num_frames)
    latents = image_latents(vae, torch.stack(pixels) + params.noise_aug_strength * noise)
    return latents.expand(params.num_frames, -1, -1, -1)


def _scalar(name: VectorField, params: Params) -> float:
    """A scalar of the vector, as the network was trained on it."""
    value = float(getattr(params, name))
    return value - 1 if name == "fps" else value


__all__ = [
    "CLIP_SIZE",
    "between_ends",
    "clip_input",
    "condition",
    "fitting_pixels",
    "image_context",
    "image_latents",
    "picture_to_pixels",
    "resize_antialiased",
    "text_context",
]
