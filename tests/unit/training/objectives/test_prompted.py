"""Text-to-video's captions: a curated clip's own words, drawn; what is measured where nobody described it."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from training.data.latents import LatentClip
from training.data.starter import Item
from training.objectives.examples.prompted import PromptedExamples


def words(captions: dict[str, str], seed: int) -> str:
    item = Item("a", "shot", "shards/0.tar#a.mp4", "film", 0.0, 1.0, 2, 24.0, "train", captions)
    clip: Any = SimpleNamespace(clip=SimpleNamespace(item=item, frames=np.zeros((2, 16, 16, 3), np.uint8)))
    return PromptedExamples._words(cast(LatentClip, clip), 0, torch.Generator().manual_seed(seed))


def test_a_described_clip_is_told_by_its_captioners_in_their_shares() -> None:
    told = Counter(words({"coca": "c", "video": "v", "merge": "m", "measured": "x"}, seed) for seed in range(800))
    assert told.keys() == {"c", "v", "m"}
    assert 340 < told["c"] < 460 and 150 < told["v"] < 250


def test_a_clip_that_nobody_described_is_told_by_what_is_measured_in_the_frame() -> None:
    assert words({}, 1) == words({"measured": "x"}, 2)
    assert "film frame" in words({}, 1)
