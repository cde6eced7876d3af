"""Multi-view: a still of an object becomes an orbit around it (paper, section 4.5; the guidance is SV3D's)."""

from model.tasks.spec import TaskSpec

MULTI_VIEW = TaskSpec(
    name="multi-view",
    concat_latents=1,
    concat_masks=0,
    context="image",
    context_tokens=1,
    vector=("fps", "motion_bucket_id", "noise_aug_strength", "elevation"),
    augmentation="pixels",
    frames=(21,),
    guidance="triangular",
    guidance_range=(1.0, 2.5),
    condition_dropout=0.1,
    pictures=("image",),
    holds_ends=False,
    fields=frozenset({"noise_aug_strength", "resize_mode", "min_guidance_scale", "elevation"}),
)
