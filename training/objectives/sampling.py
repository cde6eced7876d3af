"""Clips sampled from a network while it trains: a training row's own condition, through the sampler that serves.

Legend: T frames, C latent channels, H, W pixels; h, w latent.
"""

from __future__ import annotations

import torch
from diffusers import UNetSpatioTemporalConditionModel
from jaxtyping import Float
from torch import Tensor

from model.backends.torch import TorchDenoiser
from model.denoiser import Conditioning, CpuThreads
from model.presets import NoiseRange
from model.sampling.row import BatchKey, Row
from model.sampling.sampler import sample
from model.sampling.schedule import make_schedule
from model.shapes import LatentShape
from training.data.seeding import generator
from training.objectives.batch import Batch


def sample_clip(
    unet: UNetSpatioTemporalConditionModel, row: Batch, noise: NoiseRange, steps: int, seed: int
) -> Float[Tensor, "T C h w"]:
    """The scaled latents that the network makes of a row's condition, unguided, by Euler's method."""
    frames, channels, height, width = row.clean.shape[1:]
    inputs = row.to(unet.device)
    start = Row.begin(
        BatchKey("training", LatentShape(frames, channels, height, width), "float32"),
        solver="euler",
        sigmas=make_schedule("karras", steps, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max, rho=noise.rho),
        noise=torch.randn(row.clean.shape[1:], generator=generator(seed)).to(unet.device),
        conditioning=Conditioning(inputs.context[0].detach(), inputs.concat[0].detach(), inputs.vector[0]),
        scale=torch.ones(frames),
        seed=seed,
    )
    training = unet.training
    try:
        return sample(TorchDenoiser(unet, CpuThreads(torch.get_num_threads())), start).latents
    finally:
        unet.train(training)
