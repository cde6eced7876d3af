"""The given frames of a result are the given pictures themselves, and what lies between them gains by it.

An autoencoder loses something of every picture, and of the two ends of an interpolated clip it is known what. So a
frame between is taken as a blend of the given pictures and what the network adds to a blend:

    out_k = blend_k(a, b) + g (x_k - blend_k(x_0, x_n)),    blend_k(a, b) = (1 - t) a + t b,    t = k / n

where x_0 ... x_n are the decoded frames and a, b the given pictures. The ends come out exact. What the network adds has
an error of its own, of which the checkpoint tells the size: `noise`. Where the ends are alike within it, there is
little to add, and a blend is the better guess; the gain g is Wiener's, signal over signal and noise, at each point:

    g = d^2 / (d^2 + noise^2),    d^2 = mean of (a - b)^2 over the colours of a window around the point

With noise 0 it is 1 everywhere: then each end's loss is given back to the frames between in proportion to nearness
(docs/adr/0010-held-ends.md).

Legend: T = n + 1 frames, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8

Picture = UInt8[np.ndarray, "H W 3"]

WINDOW_RADIUS = 8
"""Pixels from the middle of a window to its border; windows end with the picture."""


def restore_end_frames(
    frames: UInt8[np.ndarray, "T H W 3"], ends: Sequence[Picture], noise: float = 0.0
) -> UInt8[np.ndarray, "T H W 3"]:
    """The decoded frames [T, H, W, 3], corrected so that the first and the last are the two `ends`.

    In float32, rounded to the nearest level, ties to the even one; the same on every machine.

    Args:
        noise: root mean square of the error of what the network adds to a blend, in levels of 0 to 255.
    """
    (a, first), (b, last) = ((end, frames[k]) for end, k in zip(ends, (0, -1), strict=True))
    gain = _gain(a, b, noise)[..., None]
    out = np.empty_like(frames)
    for k, frame in enumerate(frames):
        t = np.float32(k / (len(frames) - 1))
        held = _blend(a, b, t) + gain * (frame - _blend(first, last, t))
        out[k] = held.round().clip(0, 255).astype(np.uint8)
    return out


def _blend(a: Picture, b: Picture, t: np.float32) -> Float32[np.ndarray, "H W 3"]:
    return (1 - t) * a + t * b


def _gain(a: Picture, b: Picture, noise: float) -> Float32[np.ndarray, "H W"]:
    if not noise:
        return np.ones(a.shape[:2], np.float32)
    squares = np.square(np.subtract(a, b, dtype=np.int64)).sum(-1)
    signal, count = _window_sums(squares), 3 * _window_sums(np.ones_like(squares))
    return (signal / (signal + count * noise**2)).astype(np.float32)


def _window_sums(values: Int64[np.ndarray, "H W"]) -> Int64[np.ndarray, "H W"]:
    """Sums over the window of each point, from a table of the sums over all that is above and to the left; exact."""
    table = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    (top, bottom), (left, right) = (
        (np.clip(np.arange(size) - WINDOW_RADIUS, 0, size), np.clip(np.arange(size) + WINDOW_RADIUS + 1, 0, size))
        for size in values.shape
    )
    across = table[:, right] - table[:, left]
    sums: Int64[np.ndarray, "H W"] = across[bottom] - across[top]
    return sums
