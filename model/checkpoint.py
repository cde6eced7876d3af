"""Load and save checkpoints in the diffusers folder format.

    model_index.json  unet/  vae/  scheduler/                       as diffusers writes them
    image_encoder/ feature_extractor/, or text_encoder/ tokenizer/  as the task reads pictures or text (conditioners.py)
    stillmotion.json  ours: task, size, defaults, the motion map, how it was trained

Any folder that diffusers' StableVideoDiffusionPipeline.save_pretrained wrote loads unchanged, in whichever layout
(model.sources.layout).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import diffusers
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    UNetSpatioTemporalConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from model.catalog import SIDECAR, ModelEntry, describe
from model.denoiser import CpuThreads
from model.encoders import Conditioners, ImageEncoder, NetworkLoader, clip_image_processor, load_conditioners
from model.encoding_cache import EncodingCache, EncodingKind
from model.prefault import discard
from model.presets import NoiseRange
from model.sources.architecture import check_architecture, check_inputs, read_scheduler
from model.sources.layout import Precision, component_files
from model.tasks import TASKS
from model.weights import Layout, empty_network, load_network

# No "Loading checkpoint shards" bars: a checkpoint's networks load within seconds.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

NO_LAYOUTS: Final[Mapping[str, Layout]] = MappingProxyType({})
"""Every weight has memory of its own."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model, in evaluation mode.

    Args:
        entry: what its folder says of itself.
        conditioners: what reads its requests' pictures or prompts, as its task has it.
        noise: the sampler's sigma range, from the scheduler's config.
        encodings: those of earlier requests; None where every request encodes anew.
    """

    entry: ModelEntry
    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder
    conditioners: Conditioners
    noise: NoiseRange
    encodings: EncodingCache | None = None

    @property
    def latent_channels(self) -> int:
        """C."""
        return int(self.unet.config["out_channels"])

    def encoded(self, kind: EncodingKind, source: Tensor | str, encode: Callable[[], Tensor]) -> Tensor:
        """What `encode` makes of `source`: of an earlier request if there is one (EncodingCache.once)."""
        return encode() if self.encodings is None else self.encodings.once(kind, source, encode)

    @property
    def scaling_factor(self) -> float:
        """What latents are multiplied by before they are denoised."""
        return float(self.vae.config["scaling_factor"])


def load(
    source: Path | str | ModelEntry,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    graphs_on: str = "cpu",
    layouts: Mapping[str, Layout] = NO_LAYOUTS,
) -> Checkpoint:
    """Load a checkpoint folder; on the `meta` device shapes and dtypes only, without reading a weight.

    Args:
        graphs_on: where OpenVINO runs an export's graphs: cpu, xpu or npu.
        layouts: how networks' weights lie in memory, by the network's folder; `each` where it is not named.

    Raises:
        CheckpointError: the folder is incomplete, a network's weights do not fit its config, or a network or the
            scheduler is of a kind that is not served.
    """
    entry = source if isinstance(source, ModelEntry) else describe(Path(source))
    path = entry.path
    scheduler = read_scheduler(path)
    check_architecture(path)
    if entry.exported:
        network = _exported(path, device, graphs_on)
    else:
        network = pretrained(device, dtype, entry.precision, layouts)
    unet = network(UNetSpatioTemporalConditionModel, path / "unet")
    check_inputs(unet.config, entry.task, entry.path / "unet")
    checkpoint = Checkpoint(
        entry,
        unet=unet,
        vae=network(AutoencoderKLTemporalDecoder, path / "vae"),
        conditioners=load_conditioners(path, entry.task, network),
        noise=NoiseRange(scheduler.sigma_min, scheduler.sigma_max, 7.0, scheduler.unit_start),
    )
    discard(path)
    return checkpoint


def pretrained(
    device: torch.device | str,
    dtype: torch.dtype,
    precision: Precision = "float32",
    layouts: Mapping[str, Layout] = NO_LAYOUTS,
) -> NetworkLoader:
    """Loads a network's weights from its folder.

    Args:
        precision: which variant of the weights is read where a folder holds several.
        layouts: as for `load`.
    """

    def load_of_kind(kind: type[Any], path: Path) -> Any:
        if str(device) == "meta":
            return nn.Module.to(empty_network(kind, path), "meta", dtype)
        return load_network(kind, component_files(path, precision), device, dtype, layouts.get(path.name, "each"))

    return load_of_kind


def _exported(path: Path, device: torch.device | str, graphs_on: str) -> NetworkLoader:
    """Runs graphs in place of weights; their dtype is that of the export."""
    from model.backends.exported_networks import ExportedNetworks

    return ExportedNetworks(path, torch.device(device), CpuThreads(torch.get_num_threads()), graphs_on)


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
        timestep_spacing="linspace" if noise.unit_start else "leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )


def save(
    folder: Path,
    *,
    unet: UNetSpatioTemporalConditionModel,
    vae: AutoencoderKLTemporalDecoder,
    conditioners: Conditioners,
    noise: NoiseRange,
    sidecar: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint folder that ours loads, and diffusers' pipeline too where it has one for the task.

    The networks are cast to `dtype` in place. `sidecar` is what stillmotion.json holds (task, width, height, defaults).
    """
    unet.to(dtype)
    vae.to(dtype)
    conditioners = conditioners.cast(dtype)
    pipeline_class = TASKS[sidecar["task"]].diffusers_pipeline
    if pipeline_class is not None:
        encoder = cast(ImageEncoder, conditioners)
        pipeline = getattr(diffusers, pipeline_class)(
            vae=vae,
            image_encoder=encoder.network,
            unet=unet,
            scheduler=scheduler_for(noise),
            feature_extractor=clip_image_processor(encoder.mean, encoder.std),
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    else:
        unet.save_pretrained(folder / "unet", safe_serialization=True)
        vae.save_pretrained(folder / "vae", safe_serialization=True)
        scheduler_for(noise).save_pretrained(folder / "scheduler")
        conditioners.save(folder)
        # No pipeline of diffusers' samples these; each part loads with diffusers or transformers on its own.
        index = {"_class_name": "Stillmotion", "task": sidecar["task"]}
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n")
