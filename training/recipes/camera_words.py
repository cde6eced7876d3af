"""Stages between `mini-video` and `mini-text-to-video`: the words for the camera's motions, a few at a time (ADR 0011).

Told of all five motions at once, the denoiser learns that some clips move and some do not, and stays there: until it
heeds which way, neither way lowers its loss, and until it can go one way, heeding the word does not either. One way
alone is learned in minutes; then its opposite; then the rest. All at 32 x 64 pixels, where an iteration is cheap, at
one speed a motion, and in many captions by the name of the motion alone.
"""

import dataclasses

from training.config import DenoiserConfig
from training.recipes.text_to_video import WORDS, mini_video

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
