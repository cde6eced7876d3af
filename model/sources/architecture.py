"""What a folder or a single file holds where it is not Stable Video Diffusion: named, with what to do. No torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, Literal

from model.errors import CheckpointError

SERVED: Final = frozenset({"StableVideoDiffusionPipeline", "Stillmotion"})
"""`_class_name` of a model_index.json that can be served."""
_EXAMPLE: Final = "such as stabilityai/stable-video-diffusion-img2vid-xt"

_FAMILIES: Final[tuple[tuple[str, str], ...]] = (
    ("StableDiffusion3", "Stable Diffusion 3, which makes single pictures"),
    ("StableDiffusionXL", "Stable Diffusion XL, which makes single pictures"),
    ("StableDiffusion", "Stable Diffusion (1.x or 2.x), which makes single pictures; 2.1 can start a training "
     "(docs/training.md)"),
    ("Wan", "Wan, a video transformer"),
    ("CogVideoX", "CogVideoX, a video transformer"),
    ("Hunyuan", "HunyuanVideo, a video transformer"),
    ("LTX", "LTX-Video, a video transformer"),
    ("Mochi", "Mochi, a video transformer"),
    ("Flux", "Flux, which makes single pictures"),
    ("AnimateDiff", "AnimateDiff, a motion module of Stable Diffusion 1.5"),
    ("I2VGenXL", "I2VGen-XL, another video network"),
    ("TextToVideoSD", "ModelScope text-to-video, another video network"),
)  # fmt: skip
"""Beginning of a pipeline's class name -> what it is. The first that fits."""

_KEYS: Final[tuple[tuple[str, str], ...]] = (
    ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3, which makes single pictures"),
    ("conditioner.embedders.1.model.", "Stable Diffusion XL, which makes single pictures"),
    ("cond_stage_model.", "Stable Diffusion (1.x or 2.x), which makes single pictures"),
    ("blocks.0.cross_attn.norm_k", "Wan, a video transformer"),
    ("model.diffusion_model.blocks.0.cross_attn.", "Wan, a video transformer"),
    ("transformer_blocks.0.attn1.norm_q.", "CogVideoX, a video transformer"),
    ("double_blocks.", "Flux or HunyuanVideo, a transformer"),
)
"""Beginning of a weight's name in a single file -> what it is."""


def check_pipeline(where: str, index: dict[str, Any]) -> None:
    """Refuse a model_index.json of another architecture by name.

    Args:
        where: the folder or repository, for the message.

    Raises:
        CheckpointError: it is not of Stable Video Diffusion or of ours.
    """
    kind = str(index.get("_class_name", ""))
    if not kind or kind in SERVED or kind.startswith("StableVideoDiffusion"):
        return
    what = next((text for prefix, text in _FAMILIES if kind.startswith(prefix)), "of an architecture not known here")
    raise not_served(where, f"{what} ({kind})")


def not_served(where: str, what: str) -> CheckpointError:
    """The refusal of an architecture."""
    return CheckpointError(
        f"{where} is {what}; served are Stable Video Diffusion, its finetunes and what `stillmotion train` makes: "
        f"name one of those, {_EXAMPLE}, or a shipped checkpoint (stillmotion models)",
        param="model",
        code="wrong_architecture",
    )


def single_file_kind(where: str, names: Collection[str]) -> Literal["sgm", "diffusers"]:
    """How the weights of a single file are named: `sgm` (Stability's) or `diffusers`.

    Raises:
        CheckpointError: of another architecture, or of a part only.
    """
    has = {name.partition(".")[0] for name in names}
    if {"unet", "vae", "image_encoder"} <= has:
        return "diffusers"
    if any(name.startswith("model.diffusion_model.") and ".time_stack." in name for name in names):
        return "sgm"
    for prefix, what in _KEYS:
        if any(name.startswith(prefix) for name in names):
            raise not_served(where, what)
    if any("temporal_transformer_blocks" in name for name in names):
        if any(".lora" in name or "lora_" in name for name in names):
            raise CheckpointError(f"{where} is a LoRA: give it to --lora, beside the --model it is of", param="model")
        raise CheckpointError(
            f"{where} is a denoiser alone, in diffusers' names: put it into a copy of a Stable Video Diffusion folder "
            "as unet/diffusion_pytorch_model.safetensors, and name that folder",
            param="model",
        )
    if any("lora" in name for name in names):
        raise CheckpointError(f"{where} is a LoRA: give it to --lora, beside the --model it is of", param="model")
    if any(name.startswith("model.diffusion_model.") for name in names):
        raise not_served(where, "a denoiser without layers over time, which makes single pictures")
    raise not_served(where, "of an architecture not known here")
