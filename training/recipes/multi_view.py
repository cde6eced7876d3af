"""The mini multi-view denoiser: 21 views of an object, from one of them and the camera's elevation."""

import dataclasses

from training.config import DenoiserConfig, OrbitData, Runtime
from training.recipes.image_to_video import MINI_OPTIM


def mini_multi_view() -> DenoiserConfig:
    """From the image-to-video denoiser, on rendered orbits (`stillmotion data multi-view`) at 128 x 128."""
    return DenoiserConfig(
        preset="mini",
        task="multi-view",
        optim=dataclasses.replace(MINI_OPTIM, iterations=2400, lr=8e-4, warmup=60, seed=30),
        runtime=Runtime(),
        init="mini-image-to-video-long",
        vae="mini-vae",
        image_encoder="mini-image-encoder",
        height=128,
        width=128,
        num_frames=21,
        p_mean=1.0,
        p_std=1.6,
        condition_dropout=0.1,
        copying_start=False,
        time_only_until=0,
        window_until=0,
        window_height=128,
        window_width=128,
        data=OrbitData(fps=7, motion_bucket_id=127, noise_aug_log_mean=-3.0, noise_aug_log_std=0.5),
    )


def mini_multi_view_long() -> DenoiserConfig:
    """On from there with three times the objects: what nobody has seen needs many examples."""
    first = mini_multi_view()
    return dataclasses.replace(
        first,
        optim=dataclasses.replace(first.optim, iterations=2400, lr=1e-3, ema_decay=0.999, seed=31, method="muon"),
        init="mini-multi-view",
    )
