"""What a folder or a single file holds where it is not Stable Video Diffusion: named, with what to do. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, Literal

from model.errors import CheckpointError
from model.shapes import VAE_STRIDE

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


_DOWN_BLOCKS: Final = frozenset({"CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"})
_UP_BLOCKS: Final = frozenset({"CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"})
_ENCODER_BLOCKS: Final = frozenset({"DownEncoderBlock2D"})
_SCALAR_WIDTH: Final = 256
"""Sinusoidal numbers that a scalar of the vector is embedded in (model.unet.SCALAR_WIDTH, which imports torch)."""


def check_architecture(path: Path) -> None:
    """Refuse networks whose shape is not served, by their configs: before a weight is read, and by name.

    What a task's inputs need is checked by model.unet.check_inputs.

    Args:
        path: a checkpoint's folder.

    Raises:
        CheckpointError: a config is missing, or says what is not served; the message names it.
    """
    unet, vae = _config(path, "unet"), _config(path, "vae")
    _check_blocks(path / "unet", unet, {"down_block_types": _DOWN_BLOCKS, "up_block_types": _UP_BLOCKS})
    _check_blocks(path / "vae", vae, {"down_block_types": _ENCODER_BLOCKS})
    _check_value(path / "unet", unet, "addition_time_embed_dim", _SCALAR_WIDTH, _SCALAR_WIDTH)
    levels = len(vae.get("block_out_channels", ()))
    if 2 ** (levels - 1) != VAE_STRIDE:
        raise _shape_refused(
            path / "vae", f"block_out_channels of {levels} levels, a stride of {2 ** max(0, levels - 1)}",
            f"4 levels, a stride of {VAE_STRIDE}",
        )  # fmt: skip
    for name in ("in_channels", "out_channels"):
        _check_value(path / "vae", vae, name, 3, 3)
    _check_value(path / "vae", vae, "latent_channels", unet.get("out_channels", 4), 4)


def _config(path: Path, network: str) -> dict[str, Any]:
    file = path / network / "config.json"
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is missing or not valid JSON: {error}", param="model") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is no JSON object", param="model")
    return config


def _check_blocks(folder: Path, config: dict[str, Any], served: dict[str, frozenset[str]]) -> None:
    for name, kinds in served.items():
        for kind in config.get(name, ()):
            if kind not in kinds:
                raise _shape_refused(folder, f"{name} with {kind}", " and ".join(sorted(kinds)))


def _check_value(folder: Path, config: dict[str, Any], name: str, served: int, absent: int) -> None:
    if (value := config.get(name, absent)) != served:
        raise _shape_refused(folder, f"{name} = {value}", str(served))


def _shape_refused(folder: Path, has: str, served: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} has {has}; served is {served}: it is a network of another shape",
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
