"""Sizes as values: every stride rule of the system, stated once.

Legend: T frames, C channels, H, W pixels; h, w latent cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from model.errors import InvalidRequest

VAE_STRIDE = 8
"""Pixels a latent cell spans in each direction (the autoencoder halves three times)."""


@dataclass(frozen=True, slots=True)
class LatentShape:
    """A clip in latent space: [T, C, h, w]."""

    num_frames: int
    channels: int
    height: int
    width: int

    def as_tuple(self) -> tuple[int, int, int, int]:
        """(T, C, h, w), as torch wants it."""
        return (self.num_frames, self.channels, self.height, self.width)

    @property
    def numel(self) -> int:
        """How many numbers the latent holds."""
        return self.num_frames * self.channels * self.height * self.width


@dataclass(frozen=True, slots=True)
class VideoShape:
    """A clip in pixels: T frames of H x W.

    Args:
        unit: what H and W must be multiples of: the VAE's stride times the UNet's own downsampling.

    Raises:
        InvalidRequest: a size is not positive, or H or W is not a multiple of `unit`.
    """

    num_frames: int
    height: int
    width: int
    unit: int = VAE_STRIDE

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise InvalidRequest(f"num_frames must be at least 1, not {self.num_frames}", param="num_frames")
        for name, size in (("height", self.height), ("width", self.width)):
            if size < self.unit or size % self.unit:
                near = max(self.unit, round(size / self.unit) * self.unit)
                raise InvalidRequest(
                    f"{name} must be a positive multiple of {self.unit}, not {size}; the nearest is {near}", param=name
                )

    def latent(self, channels: int) -> LatentShape:
        """The latent of this clip, for an autoencoder of `channels` latent channels."""
        return LatentShape(self.num_frames, channels, self.height // VAE_STRIDE, self.width // VAE_STRIDE)

    @property
    def pixels(self) -> int:
        """Pixels in the whole clip."""
        return self.num_frames * self.height * self.width

    def variants(self, largest_aspect: float, lengths: Sequence[int] = ()) -> tuple[VideoShape, ...]:
        """Other shapes of at most these pixels, and this one: the buckets that clips of any shape are sorted into.

        For each height the widest, and for each width the tallest, that hold no more pixels than a frame of this one.

        Args:
            largest_aspect: of the longer side to the shorter; this shape's own is in whatever it is. 0: no other.
            lengths: frame counts besides this one's, each smaller.

        Raises:
            InvalidRequest: an aspect between 0 and 1, or a length that is not smaller.
        """
        if largest_aspect != 0 and largest_aspect < 1:
            raise InvalidRequest(f"a largest aspect is at least 1, not {largest_aspect}", param="largest_aspect")
        area, unit = self.height * self.width, self.unit
        sides = {(self.height, self.width)}
        for cells in range(1, area // unit**2 + 1):
            side, other = cells * unit, area // (cells * unit) // unit * unit
            if max(side, other) <= largest_aspect * min(side, other):
                sides |= {(side, other), (other, side)}
        counts = sorted({self.num_frames, *lengths}, reverse=True)
        if counts[0] > self.num_frames or counts[-1] < 1:
            raise InvalidRequest(f"lengths are from 1 to {self.num_frames} frames, not {counts}", param="lengths")
        return tuple(
            replace(self, num_frames=count, height=height, width=width)
            for count in counts
            for height, width in sorted(sides)
        )


def nearest(shapes: Sequence[VideoShape], frames: int, height: int, width: int) -> VideoShape | None:
    """The shape for a clip of so many frames of height x width: the longest it fills, of these the nearest in aspect.

    Aspects are compared as ratios; of two equally near shapes the larger one is taken, then the taller one. None where
    the clip is shorter than all.
    """
    longest = max((shape.num_frames for shape in shapes if shape.num_frames <= frames), default=None)
    longest_shapes = [shape for shape in shapes if shape.num_frames == longest]
    aspect = math.log(width / height)

    def order(shape: VideoShape) -> tuple[float, int, int]:
        return (round(abs(math.log(shape.width / shape.height) - aspect), 9), -shape.pixels, -shape.height)

    return min(longest_shapes, key=order, default=None)


ChunkPlan = Literal["even", "diffusers"]
"""How frames are split into the chunks that are decoded together."""
CHUNK_PLANS: Final[tuple[ChunkPlan, ...]] = get_args(ChunkPlan)


def chunk_sizes(total: int, largest: int, plan: ChunkPlan = "even") -> tuple[int, ...]:
    """The chunks that `total` frames are decoded in.

    Args:
        plan: `even` (`even_chunks`), or `diffusers`: as its pipeline splits them, full chunks and the rest, 14 by at
            most 8 is (8, 6), 25 is (8, 8, 8, 1).

    Raises:
        InvalidRequest: no frame, or chunks of none.
    """
    if plan == "even":
        return even_chunks(total, largest)
    if total < 1 or largest < 1:
        raise InvalidRequest(f"cannot split {total} frames into chunks of at most {largest}", param="decode_chunk_size")
    full, rest = divmod(total, largest)
    return (largest,) * full + ((rest,) if rest else ())


def even_chunks(total: int, largest: int) -> tuple[int, ...]:
    """Split `total` frames into the fewest chunks of at most `largest`, as evenly as can be.

    Longer chunks come first: 25 by at most 8 is (7, 6, 6, 6), never a last chunk of one that would flicker.
    """
    if total < 1 or largest < 1:
        raise InvalidRequest(f"cannot split {total} frames into chunks of at most {largest}", param="decode_chunk_size")
    count = -(-total // largest)
    base, extra = divmod(total, count)
    return (base + 1,) * extra + (base,) * (count - extra)
