"""Overrides: by name, of the setting's own type, refused otherwise."""

from __future__ import annotations

import pytest

from model.errors import InvalidRequest
from training.config import DenoiserConfig
from training.data.camera import MOTIONS, PAN_TRAVEL
from training.data.config import PromptedData
from training.overrides import with_overrides
from training.recipes import RECIPES
from training.recipes.image_to_video import mini_image_to_video
from training.recipes.text_to_video import PICTURES, mini_text_to_video


def test_overrides_reach_every_kind_of_setting() -> None:
    changed = with_overrides(
        mini_image_to_video(),
        ["optim.lr=1e-4", "optim.batch=3", "preset=tiny", "data.strides=1,3", "copying_start=false", "p_mean = -0.5"],
    )
    assert (changed.optim.lr, changed.optim.batch, changed.preset) == (1e-4, 3, "tiny")
    assert (changed.data.strides, changed.copying_start, changed.p_mean) == ((1, 3), False, -0.5)  # type: ignore[union-attr]


def test_a_pair_is_two_numbers() -> None:
    changed = with_overrides(mini_text_to_video(), ["data.pan_travel=0.2,0.5"])
    assert isinstance(changed, DenoiserConfig) and isinstance(changed.data, PromptedData)
    assert changed.data.pan_travel == (0.2, 0.5)
    with pytest.raises(InvalidRequest, match="pan_travel"):
        with_overrides(mini_text_to_video(), ["data.pan_travel=0.2"])


def test_the_words_for_motions_are_a_chain_that_ends_with_all_of_them() -> None:
    """From mini-video to mini-text-to-video by `init`; what was learned once is in what follows the next."""
    name, passed = "mini-text-to-video", []
    while name != "mini-video":
        passed.append(name)
        config = RECIPES[name]()
        assert isinstance(config, DenoiserConfig)
        name = config.init
    assert passed[-1] == "mini-video-small" and len(passed) == 8
    asked = [data.motions for data in (getattr(RECIPES[name](), "data", None) for name in passed) if data]
    assert (PICTURES.motions, PICTURES.pan_travel) == (MOTIONS, PAN_TRAVEL), "the defaults are what there is"
    assert asked[0] == MOTIONS
    assert asked[-2] == ("pan left", "still")
    assert set().union(*asked) <= set(MOTIONS)


@pytest.mark.parametrize(
    "setting", ["nothing=1", "optim.nothing=1", "optim.batch=many", "copying_start=maybe", "preset"]
)
def test_a_wrong_override_names_itself(setting: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        with_overrides(mini_image_to_video(), [setting])
    assert setting.partition("=")[0] in caught.value.message


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_a_value(name: str) -> None:
    assert RECIPES[name]() == RECIPES[name]()
