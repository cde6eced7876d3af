"""Load and save checkpoints in the diffusers folder format.

    model_index.json  unet/  vae/  image_encoder/  scheduler/  feature_extractor/   as diffusers writes them
    stillmotion.json  ours: task, size, defaults, the motion map, how it was trained

Any folder that diffusers' StableVideoDiffusionPipeline.save_pretrained wrote loads unchanged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from model.catalog import SIDECAR, ModelEntry, describe
from model.errors import CheckpointError
from model.presets import ImageEncoderSize, NoiseRange, Preset
from model.tasks import TaskSpec
from model.unet import build_unet
from model.vae import build_vae


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, in evaluation mode.

    Args:
        entry: what its folder says of itself.
        noise: the sampler's sigma range, from the scheduler's config.
        image_mean, image_std: CLIP normalisation of pictures in [0, 1], one number a channel.
    """

    entry: ModelEntry
    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder
    image_encoder: CLIPVisionModelWithProjection
    noise: NoiseRange
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    def latent_channels(self) -> int:
        """C."""
        return int(self.unet.config["out_channels"])

    @property
    def scaling_factor(self) -> float:
        """What latents are multiplied by before they are denoised."""
        return float(self.vae.config["scaling_factor"])


def _config(path: Path) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], json.loads(path.read_text()))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is missing or not valid JSON: {error}", param="model") from error


def load(
    source: Path | str | ModelEntry, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Load a checkpoint folder.

    Raises:
        CheckpointError: the folder is incomplete, or a network's weights do not fit its config.
    """
    entry = source if isinstance(source, ModelEntry) else describe(Path(source))
    path = entry.path
    scheduler = _config(path / "scheduler" / "scheduler_config.json")
    processor = _config(path / "feature_extractor" / "preprocessor_config.json")
    if scheduler.get("prediction_type") != "v_prediction":
        raise CheckpointError(
            f"{path} predicts {scheduler.get('prediction_type')!r}; only v_prediction is served", param="model"
        )
    loaded: dict[str, Any] = {}
    classes = {
        "unet": UNetSpatioTemporalConditionModel,
        "vae": AutoencoderKLTemporalDecoder,
        "image_encoder": CLIPVisionModelWithProjection,
    }
    for name, kind in classes.items():
        keyword = {"dtype": dtype} if name == "image_encoder" else {"torch_dtype": dtype}
        try:
            network = kind.from_pretrained(path / name, local_files_only=True, **keyword)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path / name} does not load: {error}", param="model") from error
        loaded[name] = network.eval().requires_grad_(False).to(device)
    mean, std = processor["image_mean"], processor["image_std"]
    noise = NoiseRange(float(scheduler["sigma_min"]), float(scheduler["sigma_max"]), 7.0)
    return Checkpoint(entry, noise=noise, image_mean=tuple(mean), image_std=tuple(std), **loaded)


def build_image_encoder(size: ImageEncoderSize) -> CLIPVisionModelWithProjection:
    """A freshly initialised CLIP vision tower."""
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**size.config()))


def scheduler_for(noise: NoiseRange) -> EulerDiscreteScheduler:
    """diffusers' scheduler with the published settings, so that its pipeline samples our checkpoints too."""
    return EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        interpolation_type="linear",
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )


def save(
    folder: Path,
    *,
    unet: UNetSpatioTemporalConditionModel,
    vae: AutoencoderKLTemporalDecoder,
    image_encoder: CLIPVisionModelWithProjection,
    noise: NoiseRange,
    sidecar: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint folder that diffusers' pipeline and ours both load.

    The networks are cast to `dtype` in place. `sidecar` is what stillmotion.json holds (task, width, height, defaults).
    """
    for network in (unet, vae, image_encoder):
        network.to(dtype)
    pipeline = StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=image_encoder,
        unet=unet,
        scheduler=scheduler_for(noise),
        feature_extractor=CLIPImageProcessor(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n")


def build_random(folder: Path, preset: Preset, task: TaskSpec, seed: int = 0) -> ModelEntry:
    """Save a randomly initialised checkpoint of a preset: for tests and benchmarks, never for users."""
    torch.manual_seed(seed)
    sidecar = {
        "task": task.name,
        "width": preset.width,
        "height": preset.height,
        "defaults": {
            "fps": 7,
            "motion_bucket_id": 127,
            "noise_aug_strength": 0.02,
            "min_guidance_scale": task.guidance_range[0],
            "max_guidance_scale": task.guidance_range[1],
            "num_inference_steps": 5,
            "solver": "euler",
            "schedule": "karras",
            "decode_chunk_size": 3,
            "resize_mode": "crop",
        },
    }
    save(
        folder,
        unet=build_unet(preset, task),
        vae=build_vae(preset),
        image_encoder=build_image_encoder(preset.image_encoder),
        noise=preset.noise,
        sidecar=sidecar,
        dtype=torch.float32,
    )
    return describe(folder)
