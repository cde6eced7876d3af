"""The mini multi-view denoiser: 21 views of an object, from one of them and the camera's elevation."""

import dataclasses

from training.config import DenoiserConfig, OrbitData, Runtime
from training.recipes.image_to_video import MINI_OPTIM


def mini_multi_view_low() -> DenoiserConfig:
    """From the image-to-video denoiser, on rendered orbits (`stillmotion data multi-view`) at half their size."""
    return DenoiserConfig(
        preset="mini",
        task="multi-view",
        optim=dataclasses.replace(
            MINI_OPTIM, iterations=1500, batch=6, warmup=60, ema_decay=0.998, seed=30, method="muon"
        ),
        runtime=Runtime(),
        init="mini-image-to-video-long",
        vae="mini-vae",
        image_encoder="mini-image-encoder",
        height=64,
        width=64,
        num_frames=21,
        p_mean=1.0,
        p_std=1.6,
        condition_dropout=0.1,
        copying_start=False,
        time_only_until=0,
        window_until=0,
        window_height=64,
        window_width=64,
        data=OrbitData(fps=7, motion_bucket_id=127, noise_aug_log_mean=-3.0, noise_aug_log_std=0.5),
    )


def mini_multi_view() -> DenoiserConfig:
    """On from there at the whole size: how things turn was cheaper to learn at half of it."""
    first = mini_multi_view_low()
    return dataclasses.replace(
        first,
        optim=dataclasses.replace(first.optim, iterations=1000, batch=2, ema_decay=0.998, seed=31),
        init="mini-multi-view-low",
        height=128,
        width=128,
        window_height=128,
        window_width=128,
    )
