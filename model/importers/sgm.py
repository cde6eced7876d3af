"""Stability's single file of Stable Video Diffusion becomes a checkpoint folder, with every weight accounted for.

A weight of ours that the file lacks, one of another shape, and one of the file that no rule knows are each an error
that names them: nothing is filled in, and nothing is dropped but what `sgm_keys.SET_ASIDE` says and the answer tells.

What Stability's `sgm` calls each weight that diffusers and transformers call otherwise: rules, not a list.

A single file of Stable Video Diffusion holds

    model.diffusion_model.                      the denoiser (VideoUNet)
    first_stage_model.decoder.                  the temporal decoder
    conditioner.embedders.3.encoder.encoder.    the picture encoder, with quant_conv. one level up
    conditioner.embedders.0.open_clip.model.    OpenCLIP, of which `visual.` reads the picture

The rules were checked against three independent readings of the published files (docs/published-weights.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from model.catalog import PUBLISHED, ModelEntry, describe
from model.checkpoint import save
from model.encoders import CLIP_NORMALISATION, ImageEncoder, build_image_encoder
from model.errors import CheckpointError
from model.presets import Preset
from model.tasks import TASKS
from model.unet import build_unet
from model.vae import build_vae
from model.weights import some

How = Literal["same", "as-linear", "transposed"]
"""The same numbers; a 1x1 convolution that became a linear layer; a matrix the other way round."""

UNET: Final = "model.diffusion_model."
DECODER: Final = "first_stage_model."
ENCODER: Final = "conditioner.embedders.3.encoder."
VISION: Final = "conditioner.embedders.0.open_clip.model.visual."

Rule = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a weight of ours lies in the file.

    Args:
        key: its name there.
        part: 0, 1 or 2 of a weight that stacks query, key and value; None for the whole of it.
    """

    key: str
    how: How = "same"
    part: int | None = None


def unet_sources(keys: Iterable[str], layers_per_block: int) -> dict[str, Source]:
    """Of each of the denoiser's weights, by its name in diffusers."""
    keys = list(keys)
    per_level = layers_per_block + 1

    def down(match: re.Match[str]) -> str:
        block, kind, index = int(match[1]), match[2], int(match[3])
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * per_level}.0.op."
        return f"input_blocks.{1 + block * per_level + index}.{_MODULE_INDEX[kind]}."

    def up(match: re.Match[str]) -> str:
        block, kind, index = int(match[1]), match[2], int(match[3])
        if kind == "upsamplers":
            attends = any(key.startswith(f"up_blocks.{block}.attentions.") for key in keys)
            return f"output_blocks.{block * per_level + layers_per_block}.{1 + attends}.conv."
        return f"output_blocks.{block * per_level + index}.{_MODULE_INDEX[kind]}."

    rules: list[Rule] = [
        (re.compile(r"^down_blocks\.(\d+)\.(downsamplers)\.(0)\.conv\."), down),
        (re.compile(r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\."), down),
        (re.compile(r"^up_blocks\.(\d+)\.(upsamplers)\.(0)\.conv\."), up),
        (re.compile(r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\."), up),
        (re.compile(r"^mid_block\.resnets\.(\d)\."), lambda m: f"middle_block.{2 * int(m[1])}."),
        (re.compile(r"^mid_block\.attentions\.0\."), "middle_block.1."),
    ]
    return {key: Source(UNET + _applied(_applied(key, rules), _UNET_INSIDE)) for key in keys}


_MODULE_INDEX = {"resnets": 0, "attentions": 1}
_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def _resnet(prefix: str) -> Callable[[re.Match[str]], str]:
    return lambda match: prefix + _RESNET[match[1]] + "."


_UNET_INSIDE: Final[list[Rule]] = [
    (re.compile(r"^time_embedding\.linear_1\."), "time_embed.0."),
    (re.compile(r"^time_embedding\.linear_2\."), "time_embed.2."),
    (re.compile(r"^add_embedding\.linear_1\."), "label_emb.0.0."),
    (re.compile(r"^add_embedding\.linear_2\."), "label_emb.0.2."),
    (re.compile(r"^conv_in\."), "input_blocks.0.0."),
    (re.compile(r"^conv_norm_out\."), "out.0."),
    (re.compile(r"^conv_out\."), "out.2."),
    (re.compile(r"spatial_res_block\.(\w+)\."), _resnet("")),
    (re.compile(r"temporal_res_block\.(\w+)\."), _resnet("time_stack.")),
    (re.compile(r"temporal_transformer_blocks\."), "time_stack."),
    (re.compile(r"time_pos_embed\.linear_1\."), "time_pos_embed.0."),
    (re.compile(r"time_pos_embed\.linear_2\."), "time_pos_embed.2."),
]


def vae_sources(keys: Iterable[str], levels: int = 4) -> dict[str, Source]:
    """Of each of the autoencoder's weights, by its name in diffusers."""
    sources: dict[str, Source] = {}
    for key in keys:
        inside = _applied(key, [(re.compile(r"up_blocks\.(\d+)\."), lambda m: f"up.{levels - 1 - int(m[1])}.")])
        inside = _applied(inside, _VAE_INSIDE)
        linear = re.search(r"attentions\.0\.to_(q|k|v|out\.0)\.weight$", key) is not None
        prefix = DECODER if key.startswith("decoder.") else ENCODER
        sources[key] = Source(prefix + inside, "as-linear" if linear else "same")
    return sources


_VAE_INSIDE: Final[list[Rule]] = [
    (re.compile(r"down_blocks\.(\d+)\."), r"down.\1."),
    (re.compile(r"(down|up)\.(\d+)\.resnets\.(\d+)\."), r"\1.\2.block.\3."),
    (re.compile(r"downsamplers\.0\."), "downsample."),
    (re.compile(r"upsamplers\.0\."), "upsample."),
    (re.compile(r"mid_block\.resnets\.(\d)\."), lambda m: f"mid.block_{int(m[1]) + 1}."),
    (re.compile(r"mid_block\.attentions\.0\."), "mid.attn_1."),
    (re.compile(r"(?<=attn_1\.)group_norm\."), "norm."),
    (re.compile(r"(?<=attn_1\.)to_(q|k|v)\."), r"\1."),
    (re.compile(r"(?<=attn_1\.)to_out\.0\."), "proj_out."),
    (re.compile(r"temporal_res_block\.(\w+)\."), _resnet("time_stack.")),
    (re.compile(r"spatial_res_block\."), ""),
    (re.compile(r"time_mixer\."), ""),
    (re.compile(r"conv_norm_out\."), "norm_out."),
    (re.compile(r"conv_shortcut\."), "nin_shortcut."),
    (re.compile(r"time_conv_out\."), "conv_out.time_mix_conv."),
]


def vision_sources(keys: Iterable[str]) -> dict[str, Source]:
    """Of each of the picture encoder's weights, by its name in transformers."""
    return {key: _vision(key) for key in keys}


def _vision(key: str) -> Source:
    if key == "visual_projection.weight":
        return Source(VISION + "proj", "transposed")
    stacked = re.match(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", key)
    if stacked:
        name = f"{VISION}transformer.resblocks.{stacked[1]}.attn.in_proj_{stacked[3]}"
        return Source(name, part="qkv".index(stacked[2]))
    return Source(VISION + _applied(key, _VISION_INSIDE))


_VISION_INSIDE: Final[list[Rule]] = [
    (re.compile(r"^vision_model\.embeddings\.class_embedding$"), "class_embedding"),
    (re.compile(r"^vision_model\.embeddings\.patch_embedding\."), "conv1."),
    (re.compile(r"^vision_model\.embeddings\.position_embedding\.weight$"), "positional_embedding"),
    (re.compile(r"^vision_model\.pre_layrnorm\."), "ln_pre."),
    (re.compile(r"^vision_model\.post_layernorm\."), "ln_post."),
    (re.compile(r"^vision_model\.encoder\.layers\."), "transformer.resblocks."),
    (re.compile(r"\.self_attn\.out_proj\."), ".attn.out_proj."),
    (re.compile(r"\.layer_norm(\d)\."), r".ln_\1."),
    (re.compile(r"\.mlp\.fc1\."), ".mlp.c_fc."),
    (re.compile(r"\.mlp\.fc2\."), ".mlp.c_proj."),
]

SET_ASIDE: Final[Mapping[str, str]] = {
    "first_stage_model.encoder.": "a second picture encoder, which sampling never asks",
    "first_stage_model.quant_conv.": "of the second picture encoder",
    "conditioner.embedders.3.encoder.decoder.": "the picture decoder beside the encoder; clips have the temporal one",
    "conditioner.embedders.3.encoder.post_quant_conv.": "of the picture decoder",
    "conditioner.embedders.0.open_clip.model.logit_scale": "OpenCLIP's contrastive training only",
    "conditioner.embedders.0.open_clip.model.positional_embedding": "OpenCLIP's text tower",
    "conditioner.embedders.0.open_clip.model.text_projection": "OpenCLIP's text tower",
    "conditioner.embedders.0.open_clip.model.token_embedding.": "OpenCLIP's text tower",
    "conditioner.embedders.0.open_clip.model.ln_final.": "OpenCLIP's text tower",
}
"""Weights that such a file may hold and a checkpoint has no use for, by the beginning of their names, and why."""


def _applied(key: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        key = pattern.sub(replacement, key)
    return key


Part = Literal["unet", "vae", "encoder"]
Names = Literal["sgm", "diffusers"]
"""Stability's names, or diffusers' behind `unet.`, `vae.` and `image_encoder.`."""


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

    def parts(self, names: Names = "sgm") -> list[tuple[nn.Module, dict[str, Source]]]:
        """Each network, and where its weights lie in the file."""
        layers = int(self.unet.config["layers_per_block"])
        levels = len(self.vae.config["block_out_channels"])
        unet, vae, encoder = (cast(nn.Module, network) for network in (self.unet, self.vae, self.encoder))
        if names == "diffusers":
            networks = {"unet": unet, "vae": vae, "image_encoder": encoder}
            return [(net, {key: Source(f"{name}.{key}") for key in net.state_dict()}) for name, net in networks.items()]
        return [
            (unet, unet_sources(unet.state_dict(), layers)),
            (vae, vae_sources(vae.state_dict(), levels)),
            (encoder, vision_sources(encoder.state_dict())),
        ]


def account(keys: Iterable[str], networks: Networks, naming: Names = "sgm") -> dict[str, str]:
    """Check that the file's names are the expected ones; those that are not used, each with the reason.

    Raises:
        CheckpointError: a name is missing, or one is known to no rule.
    """
    names = set(keys)
    expected = {source.key for _, sources in networks.parts(naming) for source in sources.values()}
    aside = {
        key: next((why for prefix, why in SET_ASIDE.items() if key.startswith(prefix)), "") for key in names - expected
    }
    unknown = sorted(key for key, why in aside.items() if not why)
    if missing := sorted(expected - names):
        raise CheckpointError(f"the file lacks {some(missing)}: it is another model's, or of another size")
    if unknown:
        raise CheckpointError(f"the file has weights that no rule knows: {some(unknown)}; nothing was written")
    return aside


def read(file: Path, preset: Preset, only: Part | None = None, names: Names = "sgm") -> tuple[Networks, dict[str, str]]:
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
            aside = account(opened.keys(), networks, names)
            for network, sources in networks.parts(names):
                if only is None or network is getattr(networks, only):
                    _give(network, {name: _read(opened, source, name) for name, source in sources.items()})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}", param="model") from error
    return networks, aside


def image_encoder_of(networks: Networks) -> ImageEncoder:
    """The picture encoder of such a file, with OpenCLIP's normalisation, which no weight tells."""
    return ImageEncoder(networks.encoder, *CLIP_NORMALISATION)


def adapt(
    file: Path,
    out: Path,
    preset: Preset,
    dtype: torch.dtype = torch.float16,
    *,
    names: Names = "sgm",
    notes: Mapping[str, str] | None = None,
) -> tuple[ModelEntry, dict[str, str]]:
    """Write the checkpoint folder `out` from a single file; the checkpoint, and what was set aside with the reasons.

    Args:
        preset: as in `read`.
        notes: what the folder's stillmotion.json says besides.

    Raises:
        CheckpointError: as `read` does.
    """
    networks, aside = read(file, preset, names=names)
    sidecar = {**PUBLISHED, "width": preset.width, "height": preset.height, "adapted_from": file.name, **(notes or {})}
    save(
        out,
        unet=networks.unet,
        vae=networks.vae,
        conditioners=image_encoder_of(networks),
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
