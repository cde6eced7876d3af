"""A step of every recipe, at the tiny size on a CPU; tests/gpu runs the same code on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.support.training_steps import RECIPES, check_step


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_of_the_recipe(recipe: str) -> None:
    check_step(recipe, torch.device("cpu"))
