"""Published weights in small: folders that diffusers itself writes, random, at the tiny preset's sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from model.encoders import build_text_encoder, byte_tokenizer
from model.presets import preset
from model.tasks import task
from model.testing import build_random

TINY = preset("tiny")


def image_unet(**changes: object) -> UNet2DConditionModel:
    """A random denoiser of Stable Diffusion 2.1's form."""
    config = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 32,
        "use_linear_projection": True,
    }
    return UNet2DConditionModel(**config | changes).eval()


def image_vae() -> AutoencoderKL:
    """A random autoencoder of Stable Diffusion's form; its biases are not the zeros that it was made with."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    ).eval()
    torch.nn.init.normal_(vae.post_quant_conv.bias)
    return vae


def stable_diffusion(
    folder: Path, *, unet: UNet2DConditionModel | None = None, prediction: str = "v_prediction"
) -> Path:
    """A folder as diffusers' pipeline saves it."""
    tokenizer = byte_tokenizer(77)
    encoder = build_text_encoder(TINY.text_encoder, tokenizer)
    assert isinstance(encoder, CLIPTextModel) and isinstance(encoder.config, CLIPTextConfig)
    StableDiffusionPipeline(
        vae=image_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet or image_unet(),
        scheduler=DDIMScheduler(prediction_type=prediction, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def stable_video_diffusion(folder: Path) -> Path:
    """A folder as diffusers' pipeline saves it: without what only ours have."""
    build_random(folder, TINY, task("image-to-video"))
    (folder / "stillmotion.json").unlink()
    return folder
