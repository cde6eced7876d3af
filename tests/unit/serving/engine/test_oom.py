"""Limits of a denoiser call: the 2^31 elements that FACTS-sized networks run into, and what memory refused."""

from __future__ import annotations

import pytest

from model.presets import preset
from model.shapes import LatentShape
from model.tasks import task
from model.unet import build_unet
from serving.engine.oom import MOST_ELEMENTS, BatchSizeBackoff, max_batch_size


@pytest.mark.parametrize(("frames", "places"), [(25, 3), (14, 6)])
def test_the_widest_tensor_of_svd_xt_stays_countable(frames: int, places: int) -> None:
    unet = build_unet(preset("svd-xt"), task("image-to-video"), device="meta")
    latent = LatentShape(frames, 4, 72, 128)
    assert max_batch_size(unet, latent) == places
    widest = frames * 72 * 128 * 8 * 320  # the feed-forward of the first level
    assert places * widest <= MOST_ELEMENTS < (places + 1) * widest


def test_a_small_network_has_room() -> None:
    unet = build_unet(preset("tiny"), task("image-to-video"), device="meta")
    assert max_batch_size(unet, LatentShape(6, 4, 8, 8)) > 1000


def test_a_refused_batch_is_not_tried_again_soon() -> None:
    ceiling = BatchSizeBackoff()
    assert ceiling.of("a", 8) == 8
    ceiling.refuse("a", 4)
    assert ceiling.of("a", 8) == 3
    assert ceiling.of("a", 2) == 2
    assert ceiling.of("b", 8) == 8
    ceiling.refuse("a", 1)
    assert ceiling.of("a", 8) == 1
