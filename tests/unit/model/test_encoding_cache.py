"""Encodings that are computed once: counted, bounded, and never another's."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.checkpoint import Checkpoint, load
from model.encoding_cache import EncodingCache
from model.media.image import fit_picture
from model.presets import preset
from model.sampling.row import Row
from model.sampling.sampler import prepare_row
from model.tasks import task
from model.testing import build_random


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8))


class Encoder:
    """Counts what it encodes."""

    def __init__(self, size: int = 4) -> None:
        self.calls = 0
        self.size = size

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.full((self.size,), float(self.calls))


def test_the_same_source_is_encoded_once_and_another_by_itself() -> None:
    cache, encode = EncodingCache(), Encoder()
    first = cache.once("embedding", torch.zeros(1, 3, 2, 4), encode)
    assert cache.once("embedding", torch.zeros(1, 3, 2, 4), encode) is first
    assert encode.calls == 1
    others = torch.zeros(1, 3, 4, 2), torch.full((1, 3, 2, 4), -0.0), torch.full((1, 3, 2, 4), 1e-7)
    for other in others:  # another shape of the same bytes, a zero of another sign, and nearly the same
        cache.once("embedding", other, encode)
    cache.once("latent", torch.zeros(1, 3, 2, 4), encode)
    cache.once("prompt", "a fox", encode)
    assert cache.counts() == {
        "embedding computed": 4,
        "latent computed": 1,
        "prompt computed": 1,
        "embedding reused": 1,
    }


def test_the_least_recently_used_goes_first() -> None:
    cache, encode = EncodingCache(budget=32), Encoder(4)  # two results of 16 bytes
    for prompt in ("a", "b", "a", "c"):
        cache.once("prompt", prompt, encode)
    assert (encode.calls, cache.stored_bytes) == (3, 32)
    cache.once("prompt", "a", encode)
    assert encode.calls == 3
    cache.once("prompt", "b", encode)
    assert encode.calls == 4
    cache.once("prompt", "large", Encoder(100))
    assert cache.stored_bytes == 32, "what is beyond the budget is not stored"


def test_a_failure_is_not_stored() -> None:
    cache, encode = EncodingCache(), Encoder()

    def fail() -> Tensor:
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.once("prompt", "a", fail)
    assert float(cache.once("prompt", "a", encode)[0]) == 1.0


def test_threads_share_it() -> None:
    cache = EncodingCache(budget=160)
    encoders = [Encoder() for _ in range(8)]

    def work(encode: Encoder) -> None:
        for index in range(200):
            cache.once("prompt", str(index % 20), encode)

    threads = [threading.Thread(target=work, args=(one,)) for one in encoders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = cache.counts()
    assert counts["prompt computed"] == sum(one.calls for one in encoders)
    assert counts["prompt computed"] + counts.get("prompt reused", 0) == 8 * 200
    assert cache.stored_bytes <= 160


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder: Path = tmp_path_factory.mktemp("models")
    names = ("image-to-video", "frame-interpolation", "text-to-video")
    return {name: load(build_random(folder / name, preset("tiny"), task(name), seed=5)) for name in names}


def rows(checkpoint: Checkpoint, seeds: range, **settings: object) -> list[Row]:
    """A row a seed, of the same pictures or prompt."""
    entry = checkpoint.entry
    made = []
    for seed in seeds:
        fields = {**entry.task.sample_request, **settings}
        params = entry.resolve(fields, seed)
        stills = [fit_picture(picture(index), *params.picture_fit) for index in range(len(entry.task.pictures))]
        made.append(prepare_row(checkpoint, params, stills))
    return made


def same(one: Row, other: Row) -> bool:
    mine, others = one.conditions[-1], other.conditions[-1]
    both = ((mine.context, others.context), (mine.concat, others.concat), (one.latents, other.latents))
    return all(torch.equal(a, b) for a, b in both)


@pytest.mark.parametrize("seeds", [4, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("image-to-video", {}, {"embedding": 1}),
        ("image-to-video", {"noise_aug_strength": 0.0}, {"embedding": 1, "latent": 1}),
        ("frame-interpolation", {}, {"embedding": 1, "latent": 1}),
        ("text-to-video", {}, {"prompt": 1}),
    ],
)
def test_many_seeds_encode_once_and_are_what_they_were(
    checkpoints: dict[str, Checkpoint], seeds: int, name: str, settings: dict[str, object], expected: dict[str, int]
) -> None:
    """The noise of the published image-to-video model is in the pixels, so each seed has a latent of its own there."""
    plain, cache = checkpoints[name], EncodingCache()
    cached = rows(replace(plain, encodings=cache), range(seeds), **settings)
    counts = cache.counts()
    assert {kind: counts[f"{kind} computed"] for kind in expected} == expected
    if name == "image-to-video" and not settings:
        assert counts["latent computed"] == seeds
    for index in (0, seeds - 1):
        (row,) = rows(plain, range(index, index + 1), **settings)
        assert same(row, cached[index])
