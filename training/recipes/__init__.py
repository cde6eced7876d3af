"""Recipes: each a function that returns a complete typed config, by the name `stillmotion train` takes."""

from __future__ import annotations

from collections.abc import Callable

from training.config import Config, Denoising
from training.recipes import published
from training.recipes.camera_lora import (
    mini_camera_lora_horizontal,
    mini_camera_lora_static,
    mini_camera_lora_zoom,
)
from training.recipes.frame_interpolation import mini_frame_interpolation, mini_frame_interpolation_long
from training.recipes.image_encoder import mini_image_encoder
from training.recipes.image_to_video import (
    mini_image_to_video,
    mini_image_to_video_chained,
    mini_image_to_video_fast,
    mini_image_to_video_long,
    mini_image_to_video_pan,
    mini_image_to_video_photographs,
)
from training.recipes.multi_view import (
    mini_multi_view,
    mini_multi_view_first,
    mini_multi_view_low,
    mini_multi_view_shapes,
    mini_multi_view_shapes_on,
    mini_multi_view_slow,
)
from training.recipes.text_to_video import (
    mini_image,
    mini_text_to_video,
    mini_video,
    mini_video_left,
    mini_video_pans,
    mini_video_small,
    mini_video_words,
    mini_video_zoom_in,
    mini_video_zoom_in_on,
    mini_video_zooms,
)
from training.recipes.vae import mini_decoder_orbits, mini_vae, mini_vae_equivariant

RECIPES: dict[str, Callable[[], Config]] = {
    "mini-vae": mini_vae,
    "mini-vae-equivariant": mini_vae_equivariant,
    "mini-image-encoder": mini_image_encoder,
    "mini-image-to-video": mini_image_to_video,
    "mini-image-to-video-long": mini_image_to_video_long,
    "mini-image-to-video-photographs": mini_image_to_video_photographs,
    "mini-image-to-video-pan": mini_image_to_video_pan,
    "mini-image": mini_image,
    "mini-video": mini_video,
    "mini-video-small": mini_video_small,
    "mini-video-left": mini_video_left,
    "mini-video-pans": mini_video_pans,
    "mini-video-zooms": mini_video_zooms,
    "mini-video-zoom-in": mini_video_zoom_in,
    "mini-video-zoom-in-on": mini_video_zoom_in_on,
    "mini-video-words": mini_video_words,
    "mini-text-to-video": mini_text_to_video,
    "mini-image-to-video-chained": mini_image_to_video_chained,
    "mini-frame-interpolation": mini_frame_interpolation,
    "mini-frame-interpolation-long": mini_frame_interpolation_long,
    "mini-decoder-orbits": mini_decoder_orbits,
    "mini-multi-view-low": mini_multi_view_low,
    "mini-multi-view-first": mini_multi_view_first,
    "mini-multi-view-slow": mini_multi_view_slow,
    "mini-multi-view-shapes": mini_multi_view_shapes,
    "mini-multi-view-shapes-on": mini_multi_view_shapes_on,
    "mini-multi-view": mini_multi_view,
    "mini-image-to-video-fast": mini_image_to_video_fast,
    "mini-camera-lora-horizontal": mini_camera_lora_horizontal,
    "mini-camera-lora-zoom": mini_camera_lora_zoom,
    "mini-camera-lora-static": mini_camera_lora_static,
}

PUBLISHED: dict[str, Callable[[], Denoising]] = {
    "image-pretraining": published.image_pretraining,
    "video-pretraining-low": published.video_pretraining_low,
    "video-pretraining-base": published.video_pretraining_base,
    "text-to-video": published.text_to_video,
    "image-to-video-low": published.image_to_video_low,
    "image-to-video-14": published.image_to_video_14,
    "image-to-video-25": published.image_to_video_25,
    "image-to-video-25-fast": published.image_to_video_25_fast,
    "frame-interpolation": published.frame_interpolation,
    "multi-view": published.multi_view,
    "camera-lora-horizontal": published.camera_lora_horizontal,
    "camera-lora-zoom": published.camera_lora_zoom,
    "camera-lora-static": published.camera_lora_static,
}
"""The paper's own stages, at their size; checked on the meta device and planned, not run here."""
