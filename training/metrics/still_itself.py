"""How much of a later frame is still the picture that the clip was made from, by dense optical flow.

A pixel of the later frame is still the picture's where following the flow back to the picture and forth again ends
within 1.5 pixels of where it began, and what lies there in the picture has the same colour to within 24 levels of 255
in every channel. So a thing may move, turn and grow, and counts; one that melts, fades or turns into something else
does not. Flow is DIS (Kroeger et al. 2016, medium preset) on grey frames.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.errors import MissingExtra
from model.media.video import Frames
from training.metrics.baselines import slow_zoom
from training.metrics.frechet import interval, resamples

FLOW_TOLERANCE = 1.5
"""Pixels between a pixel and where it comes back to."""
COLOUR_TOLERANCE = 24.0
"""Levels of 255, in every channel."""
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Likeness:
    """One frame against the picture.

    Args:
        share: of the frame's pixels that are still the picture's, 0 to 1.
        moved: mean length of the flow, as a share of the width.
    """

    share: float
    moved: float


def still_itself(picture: Frames, frame: Frames) -> Likeness:
    """Compare a later frame [H, W, 3] with the picture [H, W, 3] it was made from.

    Raises:
        MissingExtra: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtra("measuring how much of a picture is kept", "train") from None
    grey = [cv2.cvtColor(np.ascontiguousarray(one), cv2.COLOR_RGB2GRAY) for one in (picture, frame)]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = grey[0].shape
    back, forth = (np.zeros((height, width, 2), np.float32) for _ in range(2))
    flow.calc(grey[1], grey[0], back)
    flow.calc(grey[0], grey[1], forth)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    at_x, at_y = x + back[..., 0], y + back[..., 1]
    again = np.asarray(cv2.remap(forth, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)
    source = cv2.remap(picture, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    apart = np.hypot(back[..., 0] + again[..., 0], back[..., 1] + again[..., 1])
    colours = np.abs(source.astype(np.float32) - frame.astype(np.float32)).max(axis=-1)
    kept = (apart <= FLOW_TOLERANCE) & (colours <= COLOUR_TOLERANCE)
    return Likeness(float(kept.mean()), float(np.hypot(back[..., 0], back[..., 1]).mean()) / width)


PROTOCOL = (
    "Share of a frame's pixels that are still the input picture's: dense flow (DIS, medium) from the frame back to "
    f"the picture, forth and back within {FLOW_TOLERANCE} pixels, colours within {COLOUR_TOLERANCE:g} of 255 levels. "
    "Of held-out photographs, at the checkpoint's default settings: of the last frame, of the one half way, and how "
    "far the last frame's pixels moved, as a share of the width. `slow_zoom`: of the still slowly enlarged, which is "
    "what an exact motion scores. `autoencoder`: of the photograph through the autoencoder and back, standing still: "
    "about the most that a checkpoint on these latents can score. `film`: of clips generated from the first frames of "
    "held-out film clips, at their frame rate and motion bucket, beside the real clips' own share. Interval: 95% of "
    "bootstrap resamples over photographs."
)


def figure(
    photographs: Sequence[Frames],
    generated: Sequence[Frames],
    rebuilt: Sequence[Frames],
    real: Sequence[Frames],
    paired: Sequence[Frames],
) -> dict[str, Any]:
    """How much of their pictures generated clips keep.

    Args:
        photographs: [H, W, 3] each; may be none.
        generated: of each photograph, [T, H, W, 3].
        rebuilt: each photograph through the autoencoder and back, [1, H, W, 3].
        real: held-out film clips [T, H, W, 3]; may be none.
        paired: of each clip's first frame, [T, H, W, 3].
    """
    out: dict[str, Any] = {"photographs": len(photographs), "clips": len(real)}
    if photographs:
        last = [still_itself(picture, clip[-1]) for picture, clip in zip(photographs, generated, strict=True)]
        half = [still_itself(p, clip[len(clip) // 2]) for p, clip in zip(photographs, generated, strict=True)]
        zoomed = [still_itself(picture, slow_zoom(picture, 2)[-1]) for picture in photographs]
        ceiling = [still_itself(p, again[0]).share for p, again in zip(photographs, rebuilt, strict=True)]
        drawn = resamples([str(index) for index in range(len(last))], RESAMPLES, seed=0)
        shares = np.array([one.share for one in last])
        out |= {
            "last": float(shares.mean()),
            "last_interval": interval([float(shares[rows].mean()) for rows in drawn]),
            "half_way": float(np.mean([one.share for one in half])),
            "moved": float(np.mean([one.moved for one in last])),
            "slow_zoom_last": float(np.mean([one.share for one in zoomed])),
            "autoencoder": float(np.mean(ceiling)),
        }
    for name, clips in (("film", paired), ("film_real", real)):
        if clips:
            ends = [still_itself(film[0], clip[-1]) for film, clip in zip(real, clips, strict=True)]
            out[f"{name}_last"] = float(np.mean([one.share for one in ends]))
            out[f"{name}_moved"] = float(np.mean([one.moved for one in ends]))
    return out
