"""Sizes: a batch is of one, each is drawn as often as its clips would be, and every clip is in one or is named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.errors import InvalidRequest
from model.shapes import VideoShape
from tests.unit.training.support import moving_square
from tests.unit.training.toy_run import build as toy_objective
from tests.unit.training.toy_run import config as toy_config
from training.config import Buckets, DenoiserConfig
from training.data.latents import LatentClip
from training.data.seeding import generator
from training.examples import shapes_of
from training.objectives.buckets import make_buckets, sort_clips
from training.objectives.denoise import DenoiseObjective
from training.objectives.protocol import Batch
from training.recipes import PUBLISHED

OWN = VideoShape(6, 64, 128, 16)
SHAPES = OWN.variants(2.0, (3,))


def clip(name: str, frames: int, height: int, width: int, strides: tuple[int, ...] = (1, 2)) -> LatentClip:
    pixels = dataclasses.replace(moving_square(name, 1), frames=np.zeros((frames, height, width, 3), np.uint8))
    latents = np.zeros((frames, 4, height // 8, width // 8), np.float16)
    flow = {stride: np.zeros(max(0, frames - stride), np.float32) for stride in strides}
    return LatentClip(pixels, latents, np.zeros((frames, 0), np.float32), flow)


class Named:
    """Examples that say which clip was drawn; a share of them is `made`."""

    def __init__(self, shape: VideoShape, clips: list[LatentClip], share: float) -> None:
        self.shape, self.clips, self.share = shape, clips, share
        self.weights: Tensor = torch.tensor([float(len(c.latents)) for c in clips])

    def example(self, draw: torch.Generator) -> Batch:
        made = float(torch.rand((), generator=draw)) < self.share
        name = "made" if made else self.clips[int(torch.multinomial(self.weights, 1, generator=draw))].clip.item.id
        clean = torch.zeros(1, self.shape.num_frames, 4, self.shape.height // 8, self.shape.width // 8)
        return Batch(clean, clean[:, :, :0], torch.zeros(1, 5, 32), torch.zeros(1, 2), (name,))


SIZES = st.tuples(st.integers(1, 30), st.sampled_from([(s.height, s.width) for s in SHAPES]))


@settings(max_examples=25)
@given(sizes=st.lists(SIZES, min_size=1, max_size=12), stride=st.sampled_from([1, 2]))
def test_every_clip_is_in_one_bucket_or_too_short(sizes: list[tuple[int, tuple[int, int]]], stride: int) -> None:
    clips = [clip(f"c{k}", frames, *size, strides=(stride, 4)) for k, (frames, size) in enumerate(sizes)]
    groups, short = sort_clips(clips, SHAPES)
    placed = [c.clip.item.id for group in groups.values() for c in group] + [c.clip.item.id for c in short]
    assert Counter(placed) == Counter(c.clip.item.id for c in clips)
    for shape, group in groups.items():
        for one in group:
            assert one.clip.frames.shape[1:3] == (shape.height, shape.width)
            assert len(one.latents) > (shape.num_frames - 1) * stride
            assert shape.num_frames == 6 or len(one.latents) <= 5 * stride
    assert all(len(one.latents) <= 2 * stride for one in short)


def some_clips() -> list[LatentClip]:
    return [clip("wide", 30, 64, 128), clip("tall", 20, 128, 64), clip("brief", 4, 64, 128), clip("square", 10, 96, 80)]


@pytest.mark.parametrize("made_share", [0.0, 0.4])
def test_sorting_changes_not_how_often_a_clip_is_drawn(made_share: float) -> None:
    groups, _ = sort_clips(some_clips(), SHAPES)
    examples = make_buckets(OWN, groups, made_share, Named)
    assert sum(bucket.share for bucket in examples.buckets) == pytest.approx(1)
    drawn = Counter(examples.example(generator(1, k)).names[0] for k in range(4000))
    wanted = {"wide": 30, "tall": 20, "brief": 4, "square": 10}
    for name, weight in wanted.items():
        assert drawn[name] / 4000 == pytest.approx((1 - made_share) * weight / 64, abs=0.03)
    assert drawn["made"] / 4000 == pytest.approx(made_share, abs=0.03)
    assert {c.clip.item.id for c in examples.clips} == set(wanted)
    alone = make_buckets(OWN, {}, 0.3, Named)
    assert [alone.example(generator(2, k)).names for k in range(3)] == [("made",)] * 3


def test_an_iteration_is_of_one_size_and_a_function_of_its_number() -> None:
    config = dataclasses.replace(toy_config(), optim=dataclasses.replace(toy_config().optim, batch=4))
    unet = cast(nn.Module, toy_objective(config).unet)
    groups, _ = sort_clips(some_clips(), SHAPES)
    one, again = (DenoiseObjective(config, unet, make_buckets(OWN, groups, 0.2, Named)) for _ in range(2))
    seen: set[tuple[int, ...]] = set()
    for step in range(40):
        rows = one.rows(step)
        shapes = {tuple(row.clean.shape) for row in rows}
        assert len(shapes) == 1 and len(rows) == 4
        seen |= shapes
        assert one.names(step) == again.names(step)
    assert len(seen) >= 3, "the fourth has one iteration in twenty"
    assert one.backward(3)["loss"] == pytest.approx(again.backward(3)["loss"])


def test_a_published_recipe_sorts_its_clips() -> None:
    config = PUBLISHED["video-pretraining-low"]()
    shapes = shapes_of(config)
    assert {shape.num_frames for shape in shapes} == {8, 14} and len(shapes) == 8
    assert all(shape.unit == 64 and shape.pixels <= 14 * 256 * 384 for shape in shapes)
    plain: DenoiserConfig = dataclasses.replace(config, buckets=Buckets())
    assert [(s.num_frames, s.height, s.width) for s in shapes_of(plain)] == [(14, 256, 384)]
    with pytest.raises(InvalidRequest, match="orbits have one size"):
        shapes_of(dataclasses.replace(PUBLISHED["multi-view"](), buckets=Buckets(2.0)))
    with pytest.raises(InvalidRequest, match="multiple of 64"):
        shapes_of(dataclasses.replace(config, height=264))
