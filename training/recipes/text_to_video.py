"""The mini road to text-to-video, in the paper's three stages, each started from the one before.

Where the paper starts from Stable Diffusion 2.1, the mini road starts from the mini image-to-video denoiser, narrowed
to its unconditional path: a network that has seen footage but has never been told a word.
"""

import dataclasses

from training.config import DenoiserConfig, PromptedData, Runtime
from training.recipes.image_to_video import MINI_OPTIM

PICTURES = PromptedData(
    keep_every=2,
    strides=(1, 2),
    camera_clips=480,
    film_share=0.5,
    image_share=1.0,
    motion_alone=0.0,
    motion_untold=1.0,
    bucket_untold=0.5,
)
JOINT = dataclasses.replace(PICTURES, film_share=0.2, image_share=0.1, motion_alone=0.2, motion_untold=0.1)


def mini_image() -> DenoiserConfig:
    """Stage I: single captioned pictures; the time embedding alone first, then all layers."""
    return DenoiserConfig(
        preset="mini",
        task="text-to-video",
        optim=dataclasses.replace(MINI_OPTIM, iterations=300, warmup=30, lr=8e-4, ema_decay=0.99, seed=10),
        runtime=Runtime(),
        init="mini-image-to-video-long",
        vae="mini-vae",
        image_encoder="mini-image-encoder",
        height=128,
        width=224,
        num_frames=14,
        p_mean=0.0,
        p_std=1.4,
        condition_dropout=0.15,
        copying_start=False,
        time_only_until=30,
        window_until=300,
        window_height=96,
        window_width=160,
        data=PICTURES,
    )


def mini_video() -> DenoiserConfig:
    """Stage II: clips at low resolution, and pictures beside them; the motion is named in the captions."""
    first = mini_image()
    return dataclasses.replace(
        first,
        optim=dataclasses.replace(first.optim, iterations=800, warmup=60, lr=1e-3, ema_decay=0.997, seed=11),
        init="mini-image",
        p_mean=0.5,
        p_std=1.6,
        time_only_until=0,
        window_until=800,
        data=JOINT,
    )


def mini_video_small() -> DenoiserConfig:
    """Stage II still: whole frames at half the size, where many more clips fit into an hour."""
    windows = mini_video()
    return dataclasses.replace(
        windows,
        optim=dataclasses.replace(windows.optim, iterations=2000, batch=4, ema_decay=0.999, seed=13, method="muon"),
        init="mini-video",
        height=64,
        width=128,
        window_until=0,
        data=dataclasses.replace(JOINT, camera_clips=960),
    )


def mini_text_to_video() -> DenoiserConfig:
    """Stage III: whole frames, at higher noise, mostly clips whose motion is known."""
    second = mini_video()
    return dataclasses.replace(
        second,
        optim=dataclasses.replace(second.optim, iterations=400, lr=6e-4, ema_decay=0.997, seed=12, method="muon"),
        init="mini-video-small",
        p_mean=0.8,
        p_std=1.6,
        window_until=0,
        data=dataclasses.replace(JOINT, image_share=0.0, film_share=0.15),
    )
