"""The given frames of a result are the given pictures themselves, and what lies between them gains by it.

An autoencoder loses something of every picture, and of the two ends of an interpolated clip it is known what:

    out_k = x_k + (1 - t) (a - x_0) + t (b - x_n),    t = k / n

where x_0 ... x_n are the decoded frames and a, b the given pictures. The ends come out exact; to the frames between,
each end's loss is given back in proportion to nearness. Written the other way round, out_k = blend(a, b)_k + (x_k -
blend(x_0, x_n)_k): what the network adds is how a frame departs from a blend of the ends. Where nothing moves, nothing
of the given pictures is lost (docs/adr/0010-held-ends.md).

Legend: T = n + 1 frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "H W 3"]


def hold_ends(frames: UInt8[np.ndarray, "T H W 3"], ends: Sequence[Picture]) -> UInt8[np.ndarray, "T H W 3"]:
    """The decoded frames [T, H, W, 3], corrected so that the first and the last are the two `ends`.

    In float32, rounded to the nearest level, ties to the even one; the same on every machine.
    """
    first, last = (np.subtract(end, frames[k], dtype=np.float32) for end, k in zip(ends, (0, -1), strict=True))
    out = np.empty_like(frames)
    for k, frame in enumerate(frames):
        t = np.float32(k / (len(frames) - 1))
        held = frame + ((1 - t) * first + t * last)
        out[k] = held.round().clip(0, 255).astype(np.uint8)
    return out
