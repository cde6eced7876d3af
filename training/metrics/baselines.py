"""What a model has to beat: clips made from the still without any model.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from model.media.video import Frames

ZOOM = 1.10
"""How much larger the last frame of the zoom shows the still than the first."""


def still(picture: Frames, num_frames: int) -> Frames:
    """The picture, [H, W, 3], repeated: [T, H, W, 3]."""
    return np.repeat(picture[None], num_frames, axis=0)


def slow_zoom(picture: Frames, num_frames: int, zoom: float = ZOOM) -> Frames:
    """The picture enlarged about its middle, by a constant factor a frame from 1 to `zoom`: [T, H, W, 3].

    The first frame is the picture itself.
    """
    source = Image.fromarray(picture)
    width, height = source.size
    frames = []
    for index in range(num_frames):
        factor = zoom ** (index / max(1, num_frames - 1))
        margin_x, margin_y = (width - width / factor) / 2, (height - height / factor) / 2
        box = (margin_x, margin_y, width - margin_x, height - margin_y)
        frames.append(np.asarray(source.resize((width, height), Image.Resampling.BICUBIC, box=box)))
    return np.stack(frames)


def blend(clip: Frames) -> Frames:
    """A clip of the same length that fades from its first frame to its last: [T, H, W, 3]."""
    first, last = clip[0].astype(np.float64), clip[-1].astype(np.float64)
    shares = np.linspace(0, 1, len(clip))[:, None, None, None]
    mixed: Frames = np.round((1 - shares) * first + shares * last).astype(np.uint8)
    return mixed
