"""Stability's single file of Stable Video Diffusion becomes a checkpoint folder, with every weight accounted for.

A weight of ours that the file lacks, one of another shape, and one of the file that no rule knows are each an error
that names them: nothing is filled in, and nothing is dropped but what `sgm_keys.SET_ASIDE` says and the answer tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from model.adapters.sgm_keys import SET_ASIDE, Source, unet_sources, vae_sources, vision_sources
from model.adapters.whole import some
from model.catalog import PUBLISHED, ModelEntry, describe
from model.checkpoint import save
from model.conditioners import VisionTower, build_image_encoder
from model.errors import CheckpointError
from model.presets import Preset
from model.tasks import TASKS
from model.unet import build_unet
from model.vae import build_vae

Part = Literal["unet", "vae", "encoder"]


@dataclass(frozen=True, slots=True)
class Networks:
    """The three networks of a preset."""

    unet: UNetSpatioTemporalConditionModel
    vae: AutoencoderKLTemporalDecoder
    encoder: CLIPVisionModelWithProjection

    @classmethod
    def build(cls, preset: Preset) -> Networks:
        """Without weights: on the meta device."""
        with torch.device("meta"):
            encoder = build_image_encoder(preset.image_encoder)
        return cls(
            build_unet(preset, TASKS["image-to-video"], device="meta"), build_vae(preset, device="meta"), encoder
        )

    def parts(self) -> list[tuple[nn.Module, dict[str, Source]]]:
        """Each network, and where its weights lie in the file."""
        layers = int(self.unet.config["layers_per_block"])
        levels = len(self.vae.config["block_out_channels"])
        unet, vae, encoder = (cast(nn.Module, network) for network in (self.unet, self.vae, self.encoder))
        return [
            (unet, unet_sources(unet.state_dict(), layers)),
            (vae, vae_sources(vae.state_dict(), levels)),
            (encoder, vision_sources(encoder.state_dict())),
        ]


def account(keys: Iterable[str], networks: Networks) -> dict[str, str]:
    """Check that the file's names are the wanted ones; those that are not used, each with the reason.

    Raises:
        CheckpointError: a name is missing, or one is known to no rule.
    """
    there = set(keys)
    wanted = {source.key for _, sources in networks.parts() for source in sources.values()}
    aside = {
        key: next((why for prefix, why in SET_ASIDE.items() if key.startswith(prefix)), "") for key in there - wanted
    }
    unknown = sorted(key for key, why in aside.items() if not why)
    if missing := sorted(wanted - there):
        raise CheckpointError(f"the file lacks {some(missing)}: it is another model's, or of another size")
    if unknown:
        raise CheckpointError(f"the file has weights that no rule knows: {some(unknown)}; nothing was written")
    return aside


def read(file: Path, preset: Preset, only: Part | None = None) -> tuple[Networks, dict[str, str]]:
    """The networks of a single file, in its dtype, and what was set aside with the reasons.

    Args:
        preset: its sizes; svd and svd-xt differ in their frame count only, which no weight tells.
        only: the one network whose weights are wanted; the others stay on the meta device. All names are checked.

    Raises:
        CheckpointError: no such file, not safetensors, or its weights are not exactly those wanted.
    """
    networks = Networks.build(preset)
    try:
        with safe_open(file, framework="pt") as opened:
            aside = account(opened.keys(), networks)
            for network, sources in networks.parts():
                if only is None or network is getattr(networks, only):
                    _give(network, {name: _read(opened, source, name) for name, source in sources.items()})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}", param="model") from error
    return networks, aside


def vision_tower(networks: Networks) -> VisionTower:
    """The picture encoder of such a file, with OpenCLIP's normalisation, which no weight tells."""
    processor = CLIPImageProcessor()
    return VisionTower(networks.encoder, tuple(processor.image_mean), tuple(processor.image_std))


def adapt(
    file: Path, out: Path, preset: Preset, dtype: torch.dtype = torch.float16
) -> tuple[ModelEntry, dict[str, str]]:
    """Write the checkpoint folder `out` from a single file; the checkpoint, and what was set aside with the reasons.

    Args:
        preset: as in `read`.

    Raises:
        CheckpointError: as `read` does.
    """
    networks, aside = read(file, preset)
    sidecar = {**PUBLISHED, "width": preset.width, "height": preset.height, "adapted_from": file.name}
    save(
        out,
        unet=networks.unet,
        vae=networks.vae,
        conditioners=vision_tower(networks),
        noise=preset.noise,
        sidecar=sidecar,
        dtype=dtype,
    )
    return describe(out), aside


def _read(opened: Any, source: Source, name: str) -> Tensor:
    weight: Tensor = opened.get_tensor(source.key)
    if source.part is not None:
        if weight.shape[0] % 3:
            raise CheckpointError(f"{source.key} does not stack query, key and value ({tuple(weight.shape)})")
        weight = weight.chunk(3)[source.part].clone()
    if source.how == "as-linear":
        if weight.ndim == 4 and weight.shape[2:] != (1, 1):
            raise CheckpointError(f"{source.key} is no 1x1 convolution, which {name} would be made of")
        weight = weight.reshape(weight.shape[:2])
    return weight.T.contiguous() if source.how == "transposed" else weight


def _give(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put weights in the place of a network's own, which may be on the meta device."""
    wrong = [
        f"{name}: {tuple(weights[name].shape)} for {tuple(own.shape)}"
        for name, own in network.state_dict().items()
        if weights[name].shape != own.shape
    ]
    if wrong:
        raise CheckpointError(f"weights of another shape: {some(wrong)}; choose the size that the file is of")
    network.load_state_dict(dict(weights), strict=True, assign=True)
    _fill_buffers(network)


def _fill_buffers(network: nn.Module) -> None:
    """Make buffers that no file stores: CLIP's position numbers."""
    for module in network.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                if name != "position_ids":
                    raise CheckpointError(f"{type(module).__name__} has a buffer {name} that is not known here")
                module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
