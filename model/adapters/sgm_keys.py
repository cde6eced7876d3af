"""What Stability's `sgm` calls each weight that diffusers and transformers call otherwise: rules, not a list.

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
from typing import Final, Literal

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
        return f"input_blocks.{1 + block * per_level + index}.{_PLACE[kind]}."

    def up(match: re.Match[str]) -> str:
        block, kind, index = int(match[1]), match[2], int(match[3])
        if kind == "upsamplers":
            attends = any(key.startswith(f"up_blocks.{block}.attentions.") for key in keys)
            return f"output_blocks.{block * per_level + layers_per_block}.{1 + attends}.conv."
        return f"output_blocks.{block * per_level + index}.{_PLACE[kind]}."

    places: list[Rule] = [
        (re.compile(r"^down_blocks\.(\d+)\.(downsamplers)\.(0)\.conv\."), down),
        (re.compile(r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\."), down),
        (re.compile(r"^up_blocks\.(\d+)\.(upsamplers)\.(0)\.conv\."), up),
        (re.compile(r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\."), up),
        (re.compile(r"^mid_block\.resnets\.(\d)\."), lambda m: f"middle_block.{2 * int(m[1])}."),
        (re.compile(r"^mid_block\.attentions\.0\."), "middle_block.1."),
    ]
    return {key: Source(UNET + _applied(_applied(key, places), _UNET_INSIDE)) for key in keys}


_PLACE = {"resnets": 0, "attentions": 1}
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
    found: dict[str, Source] = {}
    for key in keys:
        inside = _applied(key, [(re.compile(r"up_blocks\.(\d+)\."), lambda m: f"up.{levels - 1 - int(m[1])}.")])
        inside = _applied(inside, _VAE_INSIDE)
        linear = re.search(r"attentions\.0\.to_(q|k|v|out\.0)\.weight$", key) is not None
        prefix = DECODER if key.startswith("decoder.") else ENCODER
        found[key] = Source(prefix + inside, "as-linear" if linear else "same")
    return found


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
