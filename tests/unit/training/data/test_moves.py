"""Camera moves over a still: the window stays inside, and its speed is what is measured."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from training.data.moves import render_move
from training.data.seeding import generator


def picture(width: int = 320, height: int = 240) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def test_a_move_is_a_function_of_its_generator() -> None:
    one = render_move(picture(), 5, 32, 48, generator(1, 2))
    assert one.shape == (5, 32, 48, 3)
    assert np.array_equal(one, render_move(picture(), 5, 32, 48, generator(1, 2)))
    assert not np.array_equal(one, render_move(picture(), 5, 32, 48, generator(1, 3)))


def test_moves_never_leave_the_picture() -> None:
    framed = np.full((240, 320, 3), 200, np.uint8)
    for index in range(40):
        move = render_move(Image.fromarray(framed), 4, 32, 48, torch.Generator().manual_seed(index))
        assert move.min() == 200


def test_moves_move_and_some_hardly() -> None:
    spread = []
    for index in range(40):
        move = render_move(picture(), 4, 32, 48, torch.Generator().manual_seed(index)).astype(float)
        spread.append(np.abs(move[-1] - move[0]).mean())
    assert min(spread) < 3 and max(spread) > 20
