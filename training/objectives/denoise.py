"""The denoising objective of image-to-video (paper, section 4.2; EDM, equation 8).

    E || F(c_in x; c_noise, condition) - (y - c_skip x) / c_out ||^2,   x = y + sigma n,   ln sigma ~ N(P_mean, P_std^2)

which is EDM's loss with the weight lambda(sigma) = 1 / c_out^2. Sigma is drawn once a CLIP, never a frame.

Legend: B clips, T frames, C latent channels, h, w latent; D embedding width.

The condition is built as at inference: the first frame with augmentation noise put on its PIXELS, encoded to the mode,
unscaled; its embedding; and [fps - 1, motion bucket, augmentation sigma]. Dropout zeroes both picture paths and keeps
the vector. Fps follows from the clip's stride, the bucket from its measured flow: neither is ever a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from model.presets import preset
from model.rewrites import rewrite_exactly
from model.sampling.precondition import over, precondition
from model.tasks import task
from model.unet import build_unet
from model.vae import encode_mode
from training.config import DenoiserConfig
from training.data.latents import LatentClip, to_pixels
from training.initialise import start_denoiser
from training.motion import MotionMap
from training.objectives.protocol import backward_in_parallel, generator


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch; all float32.

    clean [B, T, C, h, w] scaled latents; concat [B, T, C, h, w] condition latents; context [B, 1, D]; vector [B, 3].
    """

    clean: Tensor
    concat: Tensor
    context: Tensor
    vector: Tensor

    def row(self, k: int) -> Batch:
        """The k-th clip, as a batch of one."""
        parts = (part[k : k + 1] for part in (self.clean, self.concat, self.context, self.vector))
        return Batch(*parts)


class DenoiseObjective:
    """Image-to-video denoising on cached latents."""

    def __init__(
        self, config: DenoiserConfig, clips: list[LatentClip], vae: AutoencoderKLTemporalDecoder, motion: MotionMap
    ) -> None:
        self.config, self.vae, self.motion = config, vae, motion
        self.film = [c for c in clips if c.clip.item.kind == "shot" and self._strides(c)]
        self.moves = [c for c in clips if c.clip.item.kind == "move"]
        torch.manual_seed(config.optim.seed)
        spec = task(config.task)
        self.unet = build_unet(preset(config.preset), spec, num_frames=config.num_frames)
        if config.copying_start:
            start_denoiser(self.unet)
        rewrite_exactly(cast(nn.Module, self.unet), context_tokens=spec.context_tokens)
        self.weights = torch.tensor([float(len(c.latents)) for c in self.film]).sqrt()
        self.scaling = float(vae.config["scaling_factor"])

    @property
    def module(self) -> nn.Module:
        """The denoiser."""
        return cast(nn.Module, self.unet)

    def enter(self, step: int) -> None:
        """Every layer trains from the start."""

    def _strides(self, clip: LatentClip) -> list[int]:
        return [s for s in clip.flow if len(clip.latents) > (self.config.num_frames - 1) * s]

    def rate(self, step: int) -> float:
        """The schedule as it is."""
        return 1.0

    def batch(self, step: int) -> Batch:
        """The clips of iteration `step`."""
        config = self.config
        draws = [generator(config.optim.seed, step, row) for row in range(config.optim.batch)]
        parts = [self._example(draw, step) for draw in draws]
        clean, concat, context, vector = (torch.stack(column) for column in zip(*parts, strict=True))
        return Batch(clean, concat, context, vector)

    def _example(self, draw: torch.Generator, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        config = self.config
        clip = self._choose(draw)
        strides = self._strides(clip)
        stride = strides[int(torch.randint(0, len(strides), (), generator=draw))]
        span = (config.num_frames - 1) * stride
        first = int(torch.randint(0, len(clip.latents) - span, (), generator=draw))
        index = range(first, first + span + 1, stride)
        clean = torch.from_numpy(clip.latents[list(index)]).float() * self.scaling
        log_aug = config.noise_aug_log_mean + config.noise_aug_log_std * float(torch.randn((), generator=draw))
        strength = float(torch.tensor(log_aug).exp())
        concat = self._condition(clip, first, strength, draw)
        context = torch.from_numpy(clip.embeds[first])[None]
        if float(torch.rand((), generator=draw)) < config.condition_dropout:
            concat, context = torch.zeros_like(concat), torch.zeros_like(context)
        fps = clip.clip.item.fps / stride
        flow = float(clip.flow[stride][list(index)[:-1]].mean())
        vector = torch.tensor([round(fps) - 1.0, float(self.motion.bucket(flow)), strength])
        y, x, side = self._window(clean, step, draw)
        cut = (..., slice(y, y + side[0]), slice(x, x + side[1]))
        return clean[cut], concat[cut].expand(config.num_frames, -1, -1, -1), context, vector

    def _choose(self, draw: torch.Generator) -> LatentClip:
        if self.moves and float(torch.rand((), generator=draw)) < self.config.still_share:
            return self.moves[int(torch.randint(0, len(self.moves), (), generator=draw))]
        return self.film[int(torch.multinomial(self.weights, 1, generator=draw))]

    @torch.no_grad()
    def _condition(self, clip: LatentClip, first: int, strength: float, draw: torch.Generator) -> Tensor:
        pixels = to_pixels(clip.clip.frames[first : first + 1])
        return encode_mode(self.vae, pixels + strength * torch.randn(pixels.shape, generator=draw))[0]

    def _window(self, clean: Tensor, step: int, draw: torch.Generator) -> tuple[int, int, tuple[int, int]]:
        """The part of the latent that trains: a random window at first (cheaper), the whole of it later."""
        height, width = clean.shape[-2:]
        if step >= self.config.window_until:
            return 0, 0, (height, width)
        side = (self.config.window_height // 8, self.config.window_width // 8)
        y = int(torch.randint(0, height - side[0] + 1, (), generator=draw))
        x = int(torch.randint(0, width - side[1] + 1, (), generator=draw))
        return y, x, side

    def backward(self, step: int) -> dict[str, float]:
        """The gradients of iteration `step`: the mean error of its clips, each clip in a thread of its own."""
        pieces = [partial(self._share, part, sigma, noise) for part, sigma, noise in self._rows(step)]
        return {"loss": backward_in_parallel(pieces)}

    def _rows(self, step: int) -> list[tuple[Batch, Tensor, Tensor]]:
        batch, config = self.batch(step), self.config
        draw = generator(config.optim.seed, step, -1)
        sigma = (config.p_mean + config.p_std * torch.randn(len(batch.clean), generator=draw)).exp()
        noise = torch.randn(batch.clean.shape, generator=draw)
        return [(batch.row(k), sigma[k : k + 1], noise[k : k + 1]) for k in range(len(sigma))]

    def _share(self, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
        return denoising_error(self.unet, batch, sigma, noise).sum() / self.config.optim.batch


def denoising_error(unet: UNetSpatioTemporalConditionModel, batch: Batch, sigma: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of F against its target, one number a clip [B]."""
    noisy = batch.clean + over(sigma, batch.clean) * noise
    c = precondition(sigma)
    target = (batch.clean - over(c.c_skip, noisy) * noisy) / over(c.c_out, noisy)
    seen = torch.cat([over(c.c_in, noisy) * noisy, batch.concat], dim=2)
    out = unet(seen, c.c_noise, encoder_hidden_states=batch.context, added_time_ids=batch.vector, return_dict=False)[0]
    return F.mse_loss(out, target, reduction="none").mean(dim=(1, 2, 3, 4))
