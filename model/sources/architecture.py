"""What a folder or a single file holds where it is not Stable Video Diffusion: named, with what to do. No torch.

Its `scheduler/scheduler_config.json` is written for diffusers' EulerDiscreteScheduler. Here a request names the solver
and the schedule, over the sigmas that the config gives; what the config would change besides is not passed over:

obeyed      sigma_min, sigma_max; timestep_spacing, which with continuous timesteps decides only the scale of the first
            latents (sqrt(1 + sigma_max^2) for `leading`, sigma_max for `linspace` and `trailing`)
refused     another class; prediction_type but v_prediction; timestep_type but continuous; sigmas that are not Karras's;
            final_sigmas_type but zero; a setting that is not known here and is not off
no effect   the betas and what interpolates between them: Karras sigmas with both ends given read none of it
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from model.errors import CheckpointError
from model.shapes import VAE_STRIDE
from model.tasks import TaskSpec

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
SCALAR_WIDTH: Final = 256
"""Sinusoidal numbers that a scalar of the vector is embedded in."""


def check_architecture(path: Path) -> None:
    """Refuse networks whose shape is not served, by their configs: before a weight is read, and by name.

    What a task's inputs need is checked by `check_inputs`.

    Args:
        path: a checkpoint's folder.

    Raises:
        CheckpointError: a config is missing, or says what is not served; the message names it.
    """
    unet, vae = _config(path, "unet"), _config(path, "vae")
    _check_blocks(path / "unet", unet, {"down_block_types": _DOWN_BLOCKS, "up_block_types": _UP_BLOCKS})
    _check_blocks(path / "vae", vae, {"down_block_types": _ENCODER_BLOCKS})
    _check_value(path / "unet", unet, "addition_time_embed_dim", SCALAR_WIDTH, SCALAR_WIDTH)
    levels = len(vae.get("block_out_channels", ()))
    if 2 ** (levels - 1) != VAE_STRIDE:
        raise _shape_refused(
            path / "vae", f"block_out_channels of {levels} levels, a stride of {2 ** max(0, levels - 1)}",
            f"4 levels, a stride of {VAE_STRIDE}",
        )  # fmt: skip
    for name in ("in_channels", "out_channels"):
        _check_value(path / "vae", vae, name, 3, 3)
    _check_value(path / "vae", vae, "latent_channels", unet.get("out_channels", 4), 4)


def check_inputs(config: Mapping[str, Any], task: TaskSpec, source: Path | str) -> None:
    """Refuse a network that takes another task's inputs.

    Args:
        config: the network's.
        source: of the network, for the message.

    Raises:
        CheckpointError: its input channels or the width of its vector are not the task's.
    """
    takes = (int(config["in_channels"]), int(config["projection_class_embeddings_input_dim"]))
    needs = (task.unet_in_channels(int(config["out_channels"])), task.vector_size)
    if takes != needs:
        raise CheckpointError(
            f"{source} takes {takes[0]} channels and a vector of {takes[1]}; {task.name} needs "
            f"{needs[0]} and {needs[1]}: it is a checkpoint of another task",
            param="model",
        )


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
            f"{where} is a denoiser alone, in diffusers' names: name the checkpoint that has the rest, too, as "
            f"BASE+FILE (stabilityai/stable-video-diffusion-img2vid-xt+{where})",
            param="model",
        )
    if any("lora" in name for name in names):
        raise CheckpointError(f"{where} is a LoRA: give it to --lora, beside the --model it is of", param="model")
    if any(name.startswith("model.diffusion_model.") for name in names):
        raise not_served(where, "a denoiser without layers over time, which makes single pictures")
    raise not_served(where, "of an architecture not known here")


SCHEDULER_FILE: Final = "scheduler/scheduler_config.json"
_SCHEDULER: Final = "EulerDiscreteScheduler"
_NO_EFFECT: Final = frozenset({
    "beta_end", "beta_schedule", "beta_start", "clip_sample", "interpolation_type", "num_train_timesteps",
    "rescale_betas_zero_snr", "set_alpha_to_one", "skip_prk_steps", "steps_offset", "trained_betas",
})  # fmt: skip
_REQUIRED: Final[dict[str, tuple[Any, Any]]] = {
    "prediction_type": ("v_prediction", "epsilon"),
    "timestep_type": ("continuous", "discrete"),
    "use_karras_sigmas": (True, False),
    "use_exponential_sigmas": (False, False),
    "use_beta_sigmas": (False, False),
    "final_sigmas_type": ("zero", "zero"),
}
"""Setting -> the value that is served, and what diffusers takes where it is absent."""
_SPACINGS: Final = ("leading", "linspace", "trailing")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What is obeyed of it.

    Args:
        sigma_min, sigma_max: the ends of the noise levels.
        unit_start: the first latents are noise times sigma_max, not times sqrt(1 + sigma_max^2).
    """

    sigma_min: float
    sigma_max: float
    unit_start: bool = False


def read_scheduler(folder: Path) -> SchedulerConfig:
    """A checkpoint folder's.

    Raises:
        CheckpointError: it is missing, or has a setting that is not served; the message names it.
    """
    file = folder / SCHEDULER_FILE
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is missing or not valid JSON: {error}", param="model") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} is no JSON object", param="model")
    return check_scheduler(config, str(file))


def check_scheduler(config: dict[str, Any], where: str) -> SchedulerConfig:
    """What is obeyed of a config. Raises CheckpointError as `read_scheduler`."""
    kind = config.get("_class_name", _SCHEDULER)
    if kind != _SCHEDULER:
        raise _setting_refused(where, "_class_name", kind, _SCHEDULER)
    for name, (served, absent) in _REQUIRED.items():
        if config.get(name, absent) != served:
            raise _setting_refused(where, name, config.get(name, absent), served)
    spacing = config.get("timestep_spacing", "linspace")
    if spacing not in _SPACINGS:
        raise _setting_refused(where, "timestep_spacing", spacing, " or ".join(_SPACINGS))
    known = _NO_EFFECT | _REQUIRED.keys() | {"sigma_min", "sigma_max", "timestep_spacing"}
    for name in sorted(config.keys() - known):
        if not name.startswith("_") and config[name] not in (None, False):
            raise CheckpointError(
                f"{where} has {name} = {config[name]!r}, which is not known here, so that it cannot be obeyed; "
                "remove it if the checkpoint does not need it",
                param="model",
                code="scheduler_unsupported",
            )
    low, high = (_sigma(where, name, config.get(name)) for name in ("sigma_min", "sigma_max"))
    if low >= high:
        raise CheckpointError(f"{where}: sigma_min {low:g} is not below sigma_max {high:g}", param="model")
    return SchedulerConfig(low, high, spacing != "leading")


def _sigma(where: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise _setting_refused(where, name, value, "a positive number")
    return float(value)


def _setting_refused(where: str, name: str, value: Any, served: Any) -> CheckpointError:
    return CheckpointError(
        f"{where} has {name} = {value!r}; served is {served!r} only: its videos would not be the checkpoint's. Take a "
        "checkpoint trained so, or change the setting where it is a mistake",
        param="model",
        code="scheduler_unsupported",
    )
