"""The mini frame interpolation: five frames, of which the first and the last are given; in two runs."""

import dataclasses

from model.tasks import FRAME_INTERPOLATION
from training.config import DenoiserConfig, Runtime
from training.data.config import EndsData
from training.recipes.image_to_video import MINI_OPTIM


def mini_frame_interpolation() -> DenoiserConfig:
    """From the image-to-video denoiser, which already knows how to keep to a given picture; batches of 6."""
    return DenoiserConfig(
        preset="mini",
        task=FRAME_INTERPOLATION.name,
        optim=dataclasses.replace(MINI_OPTIM, iterations=1200, batch=6, lr=1e-3, ema_decay=0.998, seed=20),
        runtime=Runtime(),
        init="mini-image-to-video-long",
        vae="mini-vae",
        image_encoder="mini-image-encoder",
        height=128,
        width=224,
        num_frames=5,
        p_mean=1.0,
        p_std=1.2,
        condition_dropout=FRAME_INTERPOLATION.condition_dropout,
        copying_start=False,
        time_only_until=0,
        window_until=950,
        window_height=96,
        window_width=160,
        data=EndsData(strides=(1, 2, 3), still_moving=0.02, noise_aug_log_mean=-4.0, noise_aug_log_std=0.5),
    )


def mini_frame_interpolation_long() -> DenoiserConfig:
    """On from there, at higher noise: there the ends alone tell what is between them, and one step decides most."""
    first = mini_frame_interpolation()
    return dataclasses.replace(
        first,
        optim=dataclasses.replace(first.optim, iterations=2100, ema_decay=0.999, seed=21, method="muon"),
        init="mini-frame-interpolation",
        p_mean=2.0,
        p_std=1.6,
        window_until=1850,
    )
