"""The mini image-to-video denoiser, in two runs: the first learns to move a picture, the second goes on for longer."""

import dataclasses

from model.tasks import IMAGE_TO_VIDEO
from training.config import ConsistencyConfig, DenoiserConfig, Distillation, Optim, Runtime
from training.data.config import FilmData

MINI_OPTIM = Optim(
    iterations=1700,
    batch=2,
    lr=1e-3,
    warmup=60,
    final_lr_share=0.02,
    beta2=0.99,
    weight_decay=0.01,
    clip_norm=1.0,
    ema_decay=0.998,
    seed=0,
    checkpoint_every=100,
    log_every=20,
)


def mini_image_to_video() -> DenoiserConfig:
    """14 frames at 128 x 224 from the starter dataset: windows of 96 x 160 first, whole frames last."""
    return DenoiserConfig(
        preset="mini",
        task=IMAGE_TO_VIDEO.name,
        optim=MINI_OPTIM,
        runtime=Runtime(),
        init="",
        vae="mini-vae",
        image_encoder="mini-image-encoder",
        height=128,
        width=224,
        num_frames=14,
        p_mean=0.5,
        p_std=1.6,
        condition_dropout=IMAGE_TO_VIDEO.condition_dropout,
        copying_start=True,
        time_only_until=0,
        window_until=1400,
        window_height=96,
        window_width=160,
        data=FilmData(
            keep_every=2,
            strides=(1, 2),
            still_share=0.25,
            moves=160,
            noise_aug_log_mean=-3.0,
            noise_aug_log_std=0.5,
        ),
    )


def mini_image_to_video_long() -> DenoiserConfig:
    """As `mini_image_to_video`, from its weights: the loss was still falling at its end."""
    first = mini_image_to_video()
    return dataclasses.replace(
        first,
        optim=dataclasses.replace(first.optim, iterations=3000, lr=6e-4, warmup=100, ema_decay=0.999, seed=1),
        init="mini-image-to-video",
        window_until=2400,
    )


def mini_image_to_video_chained() -> DenoiserConfig:
    """As `mini_image_to_video_long`, but started from text-to-video, in the paper's order."""
    return dataclasses.replace(mini_image_to_video_long(), init="mini-text-to-video", copying_start=False)


def mini_image_to_video_photographs() -> DenoiserConfig:
    """From the shipped weights: camera moves over some 280 photographs, film beside them; small windows at first.

    Windows of 64 x 112 cost a quarter of whole frames and have the same details, which is what must be learnt to move.
    """
    long = mini_image_to_video_long()
    return dataclasses.replace(
        long,
        optim=dataclasses.replace(
            long.optim,
            iterations=4000,
            lr=1e-3,
            warmup=40,
            final_lr_share=0.1,
            ema_decay=0.998,
            other_emas=(0.99, 0.995),
            seed=70,
            checkpoint_every=50,
            log_every=10,
            method="muon",
        ),
        runtime=dataclasses.replace(long.runtime, fast_blocks=True),
        init="mini-image-to-video-long",
        window_until=3200,
        window_height=64,
        window_width=112,
        data=FilmData(
            keep_every=4,
            strides=(1,),
            still_share=0.75,
            moves=2200,
            noise_aug_log_mean=-3.0,
            noise_aug_log_std=0.5,
            renderer="paths",
        ),
    )


def mini_image_to_video_pan() -> DenoiserConfig:
    """From the shipped weights: one slow pan over photographs, always the same way, a little film beside it.

    What moves and where to is known at every noise level, so the network learns to keep details in their place
    (docs/adr/0013): within a few hundred iterations, where moves of all kinds taught nothing.
    """
    photographs = mini_image_to_video_photographs()
    return dataclasses.replace(
        photographs,
        optim=dataclasses.replace(
            photographs.optim,
            iterations=1750,
            batch=1,
            lr=2.5e-3,
            warmup=30,
            final_lr_share=0.05,
            ema_decay=0.985,
            other_emas=(),
            seed=2303,
            checkpoint_every=100,
            log_every=25,
        ),
        p_mean=1.0,
        condition_dropout=0.05,
        window_until=500,
        data=FilmData(
            keep_every=4,
            strides=(1,),
            still_share=0.88,
            moves=1000,
            noise_aug_log_mean=-3.0,
            noise_aug_log_std=0.5,
            renderer="slow-pan",
        ),
    )


def mini_image_to_video_fast() -> ConsistencyConfig:
    """The shipped checkpoint's guided solves in 2 to 4 unguided evaluations, for solver `lcm` (docs/adr/0015)."""
    long = mini_image_to_video_long()
    fields = {field.name: getattr(long, field.name) for field in dataclasses.fields(long)}
    optim = dataclasses.replace(
        long.optim,
        iterations=1500,
        lr=4e-4,
        warmup=20,
        final_lr_share=0.05,
        ema_decay=0.98,
        seed=29,
        checkpoint_every=25,
        log_every=5,
        method="muon",
    )
    return ConsistencyConfig(
        **fields
        | {
            "optim": optim,
            "runtime": Runtime(fast_blocks=True),
            "init": "mini-image-to-video-long",
            "p_mean": 2.0,
            "condition_dropout": 0.0,
            "copying_start": False,
            "window_until": 1000,
        },
        distil=Distillation(),
    )
