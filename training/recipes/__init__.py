"""Recipes: each a function that returns a complete typed config, by the name `stillmotion train` takes."""

from __future__ import annotations

from collections.abc import Callable

from training.config import Config
from training.recipes.image_encoder import mini_image_encoder
from training.recipes.image_to_video import mini_image_to_video, mini_image_to_video_long
from training.recipes.vae import mini_vae

RECIPES: dict[str, Callable[[], Config]] = {
    "mini-vae": mini_vae,
    "mini-image-encoder": mini_image_encoder,
    "mini-image-to-video": mini_image_to_video,
    "mini-image-to-video-long": mini_image_to_video_long,
}
