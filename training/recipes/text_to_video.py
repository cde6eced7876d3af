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
    camera_clips=960,
    film_share=0.5,
    image_share=1.0,
    motion_alone=0.0,
    motion_untold=1.0,
    bucket_untold=0.5,
)
JOINT = dataclasses.replace(PICTURES, film_share=0.2, image_share=0.1, motion_alone=0.2, motion_untold=0.1)
WORDS = dataclasses.replace(
    PICTURES,
    film_share=0.0,
    image_share=0.0,
    motion_alone=0.8,
    motion_untold=0.0,
    bucket_untold=1.0,
    pan_travel=(0.5, 0.5),
)


def mini_image() -> DenoiserConfig:
    """Stage I: single captioned pictures at half the size; the time embedding alone first, then all layers."""
    return DenoiserConfig(
        preset="mini",
        task="text-to-video",
        optim=dataclasses.replace(
            MINI_OPTIM, iterations=400, batch=4, warmup=30, ema_decay=0.99, seed=10, method="muon"
        ),
        runtime=Runtime(),
        init="mini-image-to-video-long",
        vae="mini-vae",
        image_encoder="mini-image-encoder",
        height=64,
        width=128,
        num_frames=14,
        p_mean=0.0,
        p_std=1.4,
        condition_dropout=0.15,
        copying_start=False,
        time_only_until=30,
        window_until=0,
        window_height=64,
        window_width=128,
        data=PICTURES,
    )


def mini_video() -> DenoiserConfig:
    """Stage II: clips at half the size, where many fit into an hour; the motion is named in the captions."""
    first = mini_image()
    return dataclasses.replace(
        first,
        optim=dataclasses.replace(first.optim, iterations=2400, warmup=60, ema_decay=0.999, seed=11),
        init="mini-image",
        p_mean=0.5,
        p_std=1.6,
        time_only_until=0,
        data=JOINT,
    )


def mini_text_to_video() -> DenoiserConfig:
    """Stage III: the words for motions learned (training.recipes.camera_words), small clips, all told."""
    second = mini_video()
    return dataclasses.replace(
        second,
        optim=dataclasses.replace(
            second.optim,
            iterations=960,
            lr=3e-3,
            warmup=10,
            final_lr_share=0.03,
            ema_decay=0.995,
            seed=59,
            checkpoint_every=60,
        ),
        init="mini-video-words",
        p_mean=1.4,
        p_std=1.3,
        data=dataclasses.replace(WORDS, film_share=0.05, motion_alone=0.3),
    )
