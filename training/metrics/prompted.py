"""Text-to-video's figures: whether the camera does what the prompt says, and whether captions help.

Legend: N clips, T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.catalog import ModelEntry
from training.config import ProgressCallback
from training.data.attribute_captions import attribute_caption
from training.data.camera import MOTIONS, camera_clips
from training.data.motion_bucket import MotionMap, measure_flow
from training.data.starter import load_items
from training.metrics.frechet import Features, interval, resamples, video_distance
from training.metrics.generate import ClipMaker, GenerationRequest
from training.metrics.inputs import EvalSample, stills
from training.metrics.loss import clean_latents, conditioning_of, loss_figure, noise_levels, validation_loss
from training.metrics.temporal import camera_motion

Figure = dict[str, Any]

PICTURES = 10
CAMERA_CLIPS = 20
RESAMPLES = 1000
PROTOCOL = {
    "camera": (
        "Share of generated clips whose measured flow has the motion that the prompt names (metrics.temporal), "
        "over five motions and captions of held-out pictures; the motion bucket is the middle one, so that the prompt "
        "alone says it. `chance` is one in five. `rendered` is the same share of real camera moves over held-out "
        "pictures: the best to be had. Interval: 95% of 1000 bootstrap resamples over captions."
    ),
    "caption": (
        "Share of held-out camera moves on which the right caption gives a lower validation loss than the caption of "
        "another clip with another motion; same noise, mean over the noise levels. `chance` is 0.5."
    ),
}


def prompted_figures(
    entry: ModelEntry,
    maker: ClipMaker,
    data: Path,
    limit: int | None,
    scale: MotionMap,
    report: ProgressCallback,
    i3d: Features | None = None,
) -> tuple[Figure, list[EvalSample]]:
    """All figures of a text-to-video checkpoint, and its clips with their prompts.

    Args:
        i3d: features for `fvd`; None leaves that figure out.
    """
    held_out = [item for item in load_items(data) if item.split == "heldout"]
    rendered = camera_clips(
        data,
        held_out,
        maker.subfolder("camera"),
        entry.height,
        entry.width,
        count=min(CAMERA_CLIPS, len(MOTIONS) * (limit or CAMERA_CLIPS)),
        frames=entry.num_frames[0],
        seed=1,
    )
    moves = [(clip.frames, motion, _move(clip.frames, motion, clip.item, scale)) for clip, motion in rendered]
    requests = _prompts(entry, data, limit or PICTURES, scale)
    generated = maker.generated(requests, "sampling prompts", report)
    named = np.array([camera_motion(clip).name for clip in generated]).reshape(-1, len(MOTIONS))
    real = [camera_motion(frames).name == motion for frames, motion, _ in moves]
    films = [np.asarray(frames) for frames, *_ in moves]
    figures = {
        "camera": obeyed(named) | {"rendered": float(np.mean(real))},
        "caption": _captions(maker, moves, report),
        "validation_loss": loss_figure(maker, [one for *_, one in moves], films, report),
    }
    if i3d:
        figures["fvd"] = video_distance(films, {"model": generated}, i3d, report)
    return figures, [
        EvalSample(str(one.params["prompt"]), None, {"model": clip})
        for one, clip in zip(requests, generated, strict=True)
    ]


def _prompts(entry: ModelEntry, data: Path, count: int, scale: MotionMap) -> list[GenerationRequest]:
    """For each of `count` held-out pictures in turn, its caption with each motion."""
    fps, middle = int(entry.defaults["fps"]), round(scale.reference_bucket)
    pictures = list(stills(data, entry.height, entry.width).items())[:count]
    return [
        GenerationRequest(
            f"prompt/{name}/{motion.replace(' ', '-')}",
            None,
            fps,
            middle,
            name,
            params={"prompt": f"{motion}, {attribute_caption(one.picture, one.kind)}"},
        )
        for name, one in pictures
        for motion in MOTIONS
    ]


def _move(frames: Any, motion: str, item: Any, scale: MotionMap) -> GenerationRequest:
    """The request a rendered camera move would be made by."""
    kind = "shot" if item.file.startswith("shots/") else "photo"
    prompt = f"{motion}, {attribute_caption(np.asarray(frames[0]), kind)}"
    bucket = scale.bucket(measure_flow(np.asarray(frames), item.fps))
    return GenerationRequest(f"move/{item.id}", None, round(item.fps), bucket, item.id, params={"prompt": prompt})


def obeyed(named: Any) -> Figure:
    """The share of clips with the motion asked for; `named`, [captions, motions], is what each shows."""
    right = named == np.array(MOTIONS)[None]
    drawn = resamples([str(index) for index in range(len(right))], RESAMPLES, seed=0)
    return {
        "model": float(right.mean()),
        "model_interval": interval([float(right[rows].mean()) for rows in drawn]),
        "by_motion": {motion: float(right[:, k].mean()) for k, motion in enumerate(MOTIONS)},
        "chance": 1 / len(MOTIONS),
        "clips": int(right.size),
    }


def _captions(
    maker: ClipMaker, moves: Sequence[tuple[Any, str, GenerationRequest]], report: ProgressCallback
) -> Figure:
    """Right captions against the next clip's, whose motion is another: motions take turns."""
    levels = noise_levels(maker.checkpoint.noise)
    conditionings = [conditioning_of(maker, one) for *_, one in moves]
    better = []
    for index, (frames, _, one) in enumerate(moves):
        report("captions, right and shuffled", index, len(moves))
        clean, other = clean_latents(maker.checkpoint, np.asarray(frames)), conditionings[(index + 1) % len(moves)]
        shuffled = type(other)(other.context, conditionings[index].concat, conditionings[index].vector)
        right, wrong = (
            sum(validation_loss(maker.denoiser, clean, which, sigma, one.seed) for sigma in levels)
            for which in (conditionings[index], shuffled)
        )
        better.append(right < wrong)
    return {"model": float(np.mean(better)), "chance": 0.5, "clips": len(better)}
