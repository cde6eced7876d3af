"""Image-to-video: a still becomes the first frame of a clip (paper, section 4.2)."""

from model.tasks.spec import TaskSpec

IMAGE_TO_VIDEO = TaskSpec(
    name="image-to-video",
    concat_latents=1,
    concat_masks=0,
    context="image",
    context_tokens=1,
    vector=("fps", "motion_bucket_id", "noise_aug_strength"),
    augmentation="pixels",
    frames=(14, 25),
    guidance="linear",
    guidance_range=(1.0, 3.0),
    condition_dropout=0.1,
    pictures=("image",),
    holds_ends=False,
    fields=frozenset({"noise_aug_strength", "resize_mode", "min_guidance_scale", "lora", "lora_scale"}),
)
