"""Text-to-video: a sentence becomes a clip (paper, section 4.1). The scale of its guidance is not published."""

from model.tasks.spec import TaskSpec

TEXT_TO_VIDEO = TaskSpec(
    name="text-to-video",
    concat_latents=0,
    concat_masks=0,
    context="text",
    context_tokens=77,
    vector=("fps", "motion_bucket_id"),
    augmentation="none",
    frames=(14, 25),
    guidance="constant",
    guidance_range=(7.5, 7.5),
    condition_dropout=0.15,
    pictures=(),
    holds_ends=False,
    fields=frozenset({"prompt", "lora", "lora_scale"}),
)
