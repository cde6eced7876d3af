"""The contrastive towers: a tokenizer that keeps words apart, pairs that match, and a loss that falls."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.unit.training.support import moving_square
from training.data.attribute_captions import attribute_caption
from training.objectives.contrastive import ContrastiveObjective, learn_tokenizer
from training.recipes.image_encoder import mini_image_encoder

RECIPE = mini_image_encoder()
CONFIG = dataclasses.replace(RECIPE, preset="tiny", optim=dataclasses.replace(RECIPE.optim, batch=4))


@pytest.fixture(scope="module")
def objective() -> ContrastiveObjective:
    return ContrastiveObjective(CONFIG, [moving_square(f"c{i}", frames=8, seed=i) for i in range(5)])


def test_the_tokenizer_makes_one_token_of_a_word_it_knows_and_several_of_another(tmp_path: Path) -> None:
    tokenizer = learn_tokenizer(["a dark green film frame, busy"] * 3)
    assert tokenizer.tokenize("dark green") == ["dark</w>", "green</w>"]
    assert len(tokenizer.tokenize("zebra")) > 1
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    text = "a zebra, green and busy"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_halves_of_a_batch_are_frames_of_the_same_shots(objective: ContrastiveObjective) -> None:
    pixels, captions = objective.batch(3)
    assert pixels.shape == (8, 3, 64, 64)
    assert len(captions) == 8
    assert float(pixels.min()) >= -1.001 and float(pixels.max()) <= 1.001


@pytest.mark.slow
def test_training_lowers_the_loss(objective: ContrastiveObjective) -> None:
    optimizer = torch.optim.AdamW(objective.module.parameters(), lr=1e-3)
    losses = []
    for _ in range(25):
        loss, _parts = objective.loss(0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_captions_name_what_is_there() -> None:
    green = torch.zeros(64, 64, 3, dtype=torch.uint8)
    green[..., 1] = 120
    assert attribute_caption(green.numpy(), "shot").startswith("a dim green film frame, plain")
    half = torch.zeros(64, 256, 3, dtype=torch.uint8)
    half[:, 128:] = 255
    assert attribute_caption(half.numpy(), "photo").endswith("photograph, plain, lighter on the right")
