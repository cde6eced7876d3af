"""Frames as CLIP and the captioners built on it want them: square, and normalised with CLIP's mean and deviation.

CLIP and CoCa shrink the shorter side to S and take the middle square; the BLIP family squeezes the whole picture.

Legend: T frames, H, W pixels, S the square's side.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from model.media.video import Frames
from training.objectives.contrastive import CLIP_MEAN, CLIP_STD


def square_pixels(frames: Frames, side: int, *, crop: bool) -> Float[Tensor, "T 3 S S"]:
    """Frames [T, H, W, 3] as normalised squares: the middle one (`crop`), or the whole picture squeezed."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    left, top = ((width - short) / 2, (height - short) / 2) if crop else (0.0, 0.0)
    box = (left, top, width - left, height - top)
    small = [Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC, box=box) for one in frames]
    unit = torch.from_numpy(np.stack([np.asarray(one, np.float32) for one in small])).permute(0, 3, 1, 2) / 255
    mean, deviation = (unit.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (unit - mean) / deviation
