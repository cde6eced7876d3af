"""Frame interpolation: two stills become a clip that leads from one to the other (paper, section 4.3 and appendix D).

The scale of its guidance and the share of dropped conditions are not published.
"""

from model.tasks.spec import TaskSpec

FRAME_INTERPOLATION = TaskSpec(
    name="frame-interpolation",
    concat_latents=1,
    concat_masks=1,
    context="image-pair",
    context_tokens=2,
    vector=("fps", "motion_bucket_id", "noise_aug_strength"),
    augmentation="latents",
    frames=(5,),
    guidance="constant",
    guidance_range=(2.0, 2.0),
    condition_dropout=0.1,
    pictures=("image", "last_image"),
    holds_ends=True,
    fields=frozenset({"noise_aug_strength", "resize_mode"}),
)
