"""The mini road to text-to-video, in the paper's three stages, each started from the one before.

Where the paper starts from Stable Diffusion 2.1, the mini road starts from the mini image-to-video denoiser, narrowed
to its unconditional path: a network that has seen footage but has never been told a word.

Stages between `mini-video` and `mini-text-to-video`: the words for the camera's motions, a few at a time (ADR 0011).

Told of all five motions at once, the denoiser learns that some clips move and some do not, and stays there: until it
heeds which way, neither way lowers its loss, and until it can go one way, heeding the word does not either. One way
alone is learned in minutes; then its opposite; then the rest. All at 32 x 64 pixels, where an iteration is cheap, at
one speed a motion, and in many captions by the name of the motion alone.
"""

import dataclasses

from model.tasks import TEXT_TO_VIDEO
from training.config import DenoiserConfig, Runtime
from training.data.config import PromptedData
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
        task=TEXT_TO_VIDEO.name,
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
        condition_dropout=TEXT_TO_VIDEO.condition_dropout,
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
    """Stage III: the words for motions learned (training.recipes.text_to_video), small clips, all told."""
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


ONE_ZOOM = ("zoom in", "zoom in", "zoom in", "pan left", "pan right")


def mini_video_small() -> DenoiserConfig:
    """All five motions; it ends knowing which clips stand still."""
    before = mini_video()
    return dataclasses.replace(
        before,
        optim=dataclasses.replace(before.optim, iterations=400, batch=8, final_lr_share=1.0, seed=45),
        init="mini-video",
        height=32,
        width=64,
        window_height=32,
        window_width=64,
        p_mean=1.2,
        p_std=1.2,
        data=dataclasses.replace(WORDS, film_share=0.03, motion_alone=0.4),
    )


def mini_video_left() -> DenoiserConfig:
    """One way to go, or none."""
    before = mini_video_small()
    optim = dataclasses.replace(
        before.optim, warmup=10, final_lr_share=0.5, ema_decay=0.99, seed=50, checkpoint_every=50
    )
    data = dataclasses.replace(
        WORDS, camera_clips=480, film_share=0.03, motion_alone=0.4, motions=("pan left", "still")
    )
    return dataclasses.replace(before, optim=optim, init="mini-video-small", data=data)


def mini_video_pans() -> DenoiserConfig:
    """Its opposite, at thrice the learning rate."""
    before = mini_video_left()
    optim = dataclasses.replace(before.optim, lr=3e-3, warmup=20, final_lr_share=0.3, seed=52)
    data = dataclasses.replace(WORDS, camera_clips=400, motions=("pan left", "pan right"))
    return dataclasses.replace(before, optim=optim, init="mini-video-left", data=data)


def mini_video_zooms() -> DenoiserConfig:
    """All five again, one zoom three times as often as the other: not enough to tell them apart."""
    before = mini_video_pans()
    optim = dataclasses.replace(before.optim, iterations=550, warmup=10, seed=53)
    motions = ("zoom in", "zoom in", "zoom in", "zoom out", "pan left", "pan right", "still")
    data = dataclasses.replace(WORDS, camera_clips=700, film_share=0.03, motion_alone=0.5, motions=motions)
    return dataclasses.replace(before, optim=optim, init="mini-video-pans", data=data)


def mini_video_zoom_in() -> DenoiserConfig:
    """One zoom, beside the pans."""
    before = mini_video_zooms()
    optim = dataclasses.replace(before.optim, iterations=250, final_lr_share=0.6, seed=54)
    data = dataclasses.replace(WORDS, camera_clips=500, motion_alone=0.7, motions=ONE_ZOOM)
    return dataclasses.replace(before, optim=optim, init="mini-video-zooms", data=data)


def mini_video_zoom_in_on() -> DenoiserConfig:
    """On with it, until it is as sure as the pans."""
    before = mini_video_zoom_in()
    optim = dataclasses.replace(before.optim, iterations=300, lr=4e-3, final_lr_share=0.8, seed=57)
    data = dataclasses.replace(WORDS, camera_clips=500, motions=ONE_ZOOM)
    return dataclasses.replace(before, optim=optim, init="mini-video-zoom-in", data=data)


def mini_video_words() -> DenoiserConfig:
    """Its opposite too, and all that was learned before."""
    before = mini_video_zoom_in_on()
    optim = dataclasses.replace(before.optim, iterations=330, final_lr_share=0.5, seed=58)
    motions = ("zoom in", "zoom out", "zoom in", "zoom out", "pan left", "pan right", "still")
    data = dataclasses.replace(WORDS, camera_clips=700, motions=motions)
    return dataclasses.replace(before, optim=optim, init="mini-video-zoom-in-on", data=data)
