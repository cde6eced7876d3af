"""Examples of several sizes, of which an iteration draws one: a call of the network holds clips of one shape.

A size is drawn as often as its clips would be, so sorting changes which clips share an iteration, never how often one
is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.shapes import VideoShape, nearest
from training.data.latents import LatentClip
from training.objectives.protocol import Batch, Examples


class WeightedExamples(Examples, Protocol):
    """Examples that draw their clips by weight."""

    @property
    def weights(self) -> Tensor:
        """One a clip."""
        ...


@dataclass(frozen=True, slots=True)
class Bucket:
    """The examples of one size.

    Args:
        share: of the iterations.
    """

    shape: VideoShape
    share: float
    examples: Examples


class BucketedExamples:
    """Examples sorted into sizes."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.buckets = tuple(buckets)
        self._shares = torch.tensor([bucket.share for bucket in self.buckets], dtype=torch.float64)

    @property
    def clips(self) -> list[LatentClip]:
        """Those of all sizes."""
        return [clip for bucket in self.buckets for clip in bucket.examples.clips]

    def bucket(self, draw: torch.Generator) -> Examples:
        """The examples of one size, drawn by share."""
        return self.buckets[int(torch.multinomial(self._shares, 1, generator=draw))].examples

    def example(self, draw: torch.Generator) -> Batch:
        """One row, of any size."""
        return self.bucket(draw).example(draw)


Make = Callable[[VideoShape, list[LatentClip], float], WeightedExamples]
"""The examples of one size from its clips, and the share of them that are not these clips but made ones."""


def sort_clips(
    clips: Sequence[LatentClip], shapes: Sequence[VideoShape]
) -> tuple[dict[VideoShape, list[LatentClip]], list[LatentClip]]:
    """Clips by the shape each is nearest to, and those that are too short for any.

    A clip's frames are counted at the smallest of its strides (its `flow` has one entry a stride).
    """
    groups: dict[VideoShape, list[LatentClip]] = {}
    short: list[LatentClip] = []
    for clip in clips:
        frames = (len(clip.latents) - 1) // min(clip.flow, default=1) + 1
        shape = nearest(shapes, frames, *clip.clip.frames.shape[1:3])
        if shape is None:
            short.append(clip)
        else:
            groups.setdefault(shape, []).append(clip)
    return groups, short


def make_buckets(
    own: VideoShape, groups: Mapping[VideoShape, list[LatentClip]], made_share: float, make: Make
) -> BucketedExamples:
    """Examples by size.

    Args:
        own: the recipe's size, which clips that are made (camera moves) have.
        made_share: of all rows, how many are to be of made clips.
    """
    real = {shape: make(shape, clips, 0.0) for shape, clips in groups.items()}
    weights = {shape: float(examples.weights.sum()) for shape, examples in real.items()}
    total = sum(weights.values())
    if not total:
        made_share = 1.0
    shares = {shape: (1 - made_share) * weight / total for shape, weight in weights.items()}
    examples: dict[VideoShape, Examples] = dict(real)
    if made_share:
        shares[own] = shares.get(own, 0.0) + made_share
        examples[own] = make(own, list(groups.get(own, [])), made_share / shares[own])
    order = sorted(shares, key=lambda shape: (shape.num_frames, shape.height, shape.width))
    return BucketedExamples([Bucket(shape, shares[shape], examples[shape]) for shape in order])
