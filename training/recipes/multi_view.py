"""The mini multi-view denoiser: 21 views of an object, from one of them and the camera's elevation."""

import dataclasses

from model.tasks import MULTI_VIEW
from training.config import DenoiserConfig, Runtime
from training.data.config import OrbitData
from training.recipes.image_to_video import MINI_OPTIM


def mini_multi_view_low() -> DenoiserConfig:
    """From the image-to-video denoiser, on rendered orbits (`stillmotion data multi-view`) at half their size."""
    return DenoiserConfig(
        preset="mini",
        task=MULTI_VIEW.name,
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
        condition_dropout=MULTI_VIEW.condition_dropout,
        copying_start=False,
        time_only_until=0,
        window_until=0,
        window_height=64,
        window_width=64,
        data=OrbitData(fps=7, motion_bucket_id=127, noise_aug_log_mean=-3.0, noise_aug_log_std=0.5),
    )


def mini_multi_view_first() -> DenoiserConfig:
    """On from there at the whole size: how things turn was cheaper to learn at half of it."""
    return _whole(mini_multi_view_low(), init="mini-multi-view-low", iterations=1000, seed=31)


def mini_multi_view_slow() -> DenoiserConfig:
    """On, at the same low rate: views became truer, but no sharper than before."""
    return _whole(mini_multi_view_low(), init="mini-multi-view-first", iterations=2500, seed=33)


def mini_multi_view_shapes() -> DenoiserConfig:
    """Half the size again, at four times the rate: shapes are what was lacking (docs/adr/0012)."""
    first = mini_multi_view_low()
    optim = dataclasses.replace(first.optim, iterations=3000, lr=4e-3, seed=36)
    return dataclasses.replace(first, optim=optim, init="mini-multi-view-slow", p_mean=0.7)


def mini_multi_view_shapes_on() -> DenoiserConfig:
    """On, at the noise levels of the runs before."""
    first = mini_multi_view_low()
    optim = dataclasses.replace(first.optim, iterations=1800, lr=4e-3, seed=37)
    return dataclasses.replace(first, optim=optim, init="mini-multi-view-shapes")


def mini_multi_view() -> DenoiserConfig:
    """Those shapes at the whole size, to be decoded by the decoder that knows such objects."""
    config = _whole(mini_multi_view_low(), init="mini-multi-view-shapes-on", iterations=1500, seed=38, lr=3e-3)
    return dataclasses.replace(config, vae="mini-decoder-orbits")


def _whole(first: DenoiserConfig, init: str, iterations: int, seed: int, lr: float = 1e-3) -> DenoiserConfig:
    """A run at 128 x 128, two orbits at a time."""
    return dataclasses.replace(
        first,
        optim=dataclasses.replace(first.optim, iterations=iterations, batch=2, seed=seed, lr=lr),
        init=init,
        height=128,
        width=128,
        window_height=128,
        window_width=128,
    )
