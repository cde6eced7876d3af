"""The LoRA catalog: what a LoRA's safetensors file says of itself, read from its header without torch.

A LoRA stands for W + alpha / r * B A in some linear layers (Hu et al. 2021, arXiv 2106.09685): A [r, in], B [out, r].
Those served are in the denoiser's transformer blocks, over space and over time: attention's four projections, the
feed-forward layers, and the projections in and out of a block. Camera motion alone is learned in the self-attention
over time (Blattmann et al. 2023, arXiv 2311.15127, section 4.3). Key names, one of:

    unet.LAYER.lora_A.weight, lora_B                             PEFT, diffusers, and ours; also base_model.model.LAYER
    unet.LAYER.lora.down.weight, lora.up; processor.to_q_lora    older diffusers
    lora_unet_LAYER.lora_down.weight, lora_up, alpha             kohya's trainers, LAYER with `_` for `.`

Our files' metadata names the LoRA, its task, and the checkpoint it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.errors import CheckpointError, InvalidRequest

FOLDER: Final = "loras"
"""Of a checkpoint's folder: each safetensors file in it is a LoRA that the checkpoint offers."""
SUFFIX: Final = ".safetensors"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PINNED: Final = re.compile(rf"({NAME.pattern})@([0-9a-f]{{12}})")
ALPHA: Final = "alpha"
_PROJECTION: Final = r"attn[12]\.(?:to_q|to_k|to_v|to_out\.0)|ff(?:_in)?\.net\.(?:0\.proj|2)"
_LAYER: Final = re.compile(
    rf".+\.(?:temporal_)?transformer_blocks\.\d+\.(?:{_PROJECTION})|.+\.attentions\.\d+\.proj_(?:in|out)"
)
_HALVES: Final = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora.down.weight": "A",
    "lora.up.weight": "B",
    "lora_down.weight": "A",
    "lora_up.weight": "B",
    "alpha": ALPHA,
}
"""How keys end -> which tensor of a layer they are."""
_PREFIX: Final = re.compile(r"(?:base_model\.model\.)?(?:unet\.)?")
_OLD_PROCESSOR: Final = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.")
_KOHYA: Final = re.compile(
    r"lora_unet_(down_blocks_\d+|mid_block|up_blocks_\d+)_attentions_(\d+)_"
    r"(?:(proj_in|proj_out)|((?:temporal_)?transformer_blocks)_(\d+)_"
    r"(attn1|attn2|ff|ff_in)_(to_q|to_k|to_v|to_out_0|net_0_proj|net_2))"
)
_DOTTED: Final = {"to_out_0": "to_out.0", "net_0_proj": "net.0.proj", "net_2": "net.2"}
_ADAPTER_METADATA: Final = "lora_adapter_metadata"
"""Where diffusers writes the settings of an adapter."""
_MOST_HEADER: Final = 100_000_000
"""Bytes; safetensors' own limit."""


@dataclass(frozen=True, slots=True)
class LoraEntry:
    """A LoRA that can be served.

    Args:
        name: how requests name it.
        path: its file.
        version: first 12 hex digits of the file's SHA-256.
        rank: r.
        alpha: the product is multiplied by alpha / r.
        task: what it was trained for; empty where its file does not say.
        base: NAME@VERSION of the checkpoint it was trained on; empty where its file does not say.
    """

    name: str
    path: Path
    version: str
    rank: int
    alpha: float
    task: str = ""
    base: str = ""

    @property
    def pinned(self) -> str:
        """NAME@VERSION, as a job's settings have it."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA at a strength: part of what rows must have in common to share a denoiser call.

    Args:
        version: of the LoRA's file.
        scale: what its product is multiplied by, besides alpha / r.
    """

    name: str
    version: str
    scale: float


def lora_use(pinned: str | None, scale: float | None) -> LoraUse | None:
    """What complete settings ask for; None for no LoRA.

    Raises:
        InvalidRequest: one of the two without the other, or no NAME@VERSION.
    """
    if pinned is None and scale is None:
        return None
    if pinned is None or scale is None:
        raise InvalidRequest("lora and lora_scale go together; leave both out for no LoRA", param="lora_scale")
    match = _PINNED.fullmatch(pinned)
    if match is None:
        raise InvalidRequest(f"lora must be NAME@VERSION in complete settings, not {pinned!r}", param="lora")
    return LoraUse(match[1], match[2], float(scale))


def choose_lora(requested: str, offered: tuple[LoraEntry, ...], model: str) -> LoraEntry:
    """The LoRA that a request names, as NAME, or as NAME@VERSION to have that one or none.

    Raises:
        InvalidRequest: the model does not offer it; the message lists those it does.
    """
    name, _, version = requested.partition("@")
    lora = next((one for one in offered if one.name == name), None)
    if lora is None:
        names = ", ".join(one.name for one in offered)
        remedy = f"there are: {names}" if names else "there are none (--lora adds some, where torch runs the denoiser)"
        raise InvalidRequest(f"{model} offers no LoRA {name!r}; {remedy}", code="lora_not_found", param="lora")
    if version and version != lora.version:
        raise InvalidRequest(
            f"the LoRA {name!r} has version {lora.version} here, not {version}: offer the file of that version, or "
            "ask for it without one",
            code="other_version",
            param="lora",
        )
    return lora


def describe_lora(path: Path, name: str | None = None) -> LoraEntry:
    """What a file holds, from its header; every key of it accounted for.

    Args:
        name: how requests are to name it; the name in the file, or else the file's own, when left out.

    Raises:
        CheckpointError: no safetensors file, keys of other layers or that lack their counterpart, unequal ranks, or a
            kind of adapter that is not served.
    """
    tensors, metadata, start = _header(path)
    rank = _rank(path, tensors)
    if "rank" in metadata and metadata["rank"] != str(rank):
        raise _bad(path, f"its metadata says rank {metadata['rank']}, and its weights have rank {rank}")
    name = name or metadata.get("name") or path.stem
    if not NAME.fullmatch(name):
        raise _bad(path, f"{name!r} is no name for a LoRA: letters, digits, '.', '_' and '-', at most 64")
    with path.open("rb") as stream:
        version = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    alpha = _stored_alpha(path, tensors, start)
    alpha = _alpha(path, metadata, rank) if alpha is None else alpha
    return LoraEntry(name, path, version, rank, alpha, metadata.get("task", ""), metadata.get("base", ""))


def offered_in(folder: Path) -> tuple[LoraEntry, ...]:
    """The LoRAs whose files lie in a folder, by file name. Raises CheckpointError for one that is not served."""
    return tuple(describe_lora(path) for path in sorted(folder.glob(f"*{SUFFIX}")))


def split_key(key: str) -> tuple[str, str] | None:
    """The layer a tensor belongs to, and which it is (`A`, `B` or `alpha`); None for a key of something else.

    The layer is named as in the network, whichever way the file names it.
    """
    key = _OLD_PROCESSOR.sub(lambda match: f".{match[1]}{'.0' if match[1] == 'to_out' else ''}.lora.", key)
    ending = next((ending for ending in _HALVES if key.endswith(f".{ending}")), None)
    if ending is None:
        return None
    name = key.removesuffix(f".{ending}")
    layer = _kohya_layer(name) if name.startswith("lora_") else _PREFIX.sub("", name, count=1)
    return (layer, _HALVES[ending]) if layer is not None and is_adaptable(layer) else None


def is_adaptable(layer: str) -> bool:
    """Whether a LoRA may adapt the denoiser's linear layer of this name."""
    return _LAYER.fullmatch(layer) is not None


def _kohya_layer(name: str) -> str | None:
    """The layer that kohya's trainers call `name`; None for a layer of no transformer block."""
    match = _KOHYA.fullmatch(name)
    if match is None:
        return None
    block, attention, outer, kind, number, part, projection = match.groups()
    layer = f"{re.sub(r'_(?=[0-9]+$)', '.', block)}.attentions.{attention}"
    return f"{layer}.{outer}" if outer else f"{layer}.{kind}.{number}.{part}.{_DOTTED.get(projection, projection)}"


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """The tensors' descriptions by key, the metadata, and where in the file their numbers begin."""
    if path.suffix != SUFFIX:
        raise _bad(
            path, f"only {SUFFIX} is read: a pickle (.bin, .pt, .ckpt) may run code of its maker's; convert it first"
        )
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if not 2 <= size <= min(_MOST_HEADER, path.stat().st_size - 8):
                raise ValueError("its first eight bytes are no header's length")
            tensors = json.loads(stream.read(size))
        metadata = tensors.pop("__metadata__", {})
        shapes = [one["shape"] for one in tensors.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(path, f"it is no whole safetensors file ({error})") from error
    if not shapes:
        raise _bad(path, "it holds no weights")
    return tensors, metadata, 8 + size


def _rank(path: Path, tensors: dict[str, Any]) -> int:
    """The one rank of all layers."""
    ranks: dict[str, dict[str, int]] = {}
    for key, one in sorted(tensors.items()):
        part = split_key(key)
        if part is None:
            raise _bad(
                path,
                f"{key} is of no layer that is served: those are the attentions' and feed-forward layers' matrices in "
                "the denoiser's transformer blocks (docs/published-weights.md); train without convolutions and text "
                "encoders, or leave them out",
            )
        layer, half = part
        if half == ALPHA:
            continue
        if len(one["shape"]) != 2:
            raise _bad(path, f"{key} is no matrix")
        if half in ranks.setdefault(layer, {}):
            raise _bad(path, f"{layer} is there twice")
        ranks[layer][half] = one["shape"][0 if half == "A" else 1]
    for layer, halves in ranks.items():
        if len(halves) != 2:
            raise _bad(path, f"{layer} has only one of lora_A and lora_B")
        if halves["A"] != halves["B"]:
            raise _bad(path, f"lora_A of {layer} has rank {halves['A']}, and lora_B rank {halves['B']}")
    distinct = sorted({halves["A"] for halves in ranks.values()})
    if len(distinct) != 1 or distinct[0] < 1:
        raise _bad(path, f"its layers have ranks {', '.join(map(str, distinct))}; one rank for all is served")
    return int(distinct[0])


def _stored_alpha(path: Path, tensors: dict[str, Any], start: int) -> float | None:
    """The one alpha that kohya's trainers store beside each layer; None where there is none."""
    layers, alphas = set(), {}
    for key, one in tensors.items():
        layer, half = split_key(key) or ("", "")
        layers.add(layer)
        if half == ALPHA:
            alphas[layer] = _number(path, key, one, start)
    if not alphas:
        return None
    if len(set(alphas.values())) != 1 or alphas.keys() != layers:
        raise _bad(path, "its layers have several alphas, or some have none; one alpha for all is served")
    return next(iter(alphas.values()))


def _number(path: Path, key: str, one: dict[str, Any], start: int) -> float:
    """A tensor of one number, without torch."""
    try:
        with path.open("rb") as stream:
            stream.seek(start + one["data_offsets"][0])
            data = stream.read(one["data_offsets"][1] - one["data_offsets"][0])
        if one["dtype"] == "BF16":  # the upper half of a float32
            return float(struct.unpack("<f", b"\0\0" + data)[0])
        return float(struct.unpack({"F16": "<e", "F32": "<f", "F64": "<d"}[one["dtype"]], data)[0])
    except (OSError, KeyError, TypeError, IndexError, struct.error) as error:
        raise _bad(path, f"{key} is no number ({error})") from error


def _alpha(path: Path, metadata: dict[str, str], rank: int) -> float:
    try:
        if "alpha" in metadata:
            return float(metadata["alpha"])
        theirs = json.loads(metadata.get(_ADAPTER_METADATA, "{}"))
        settings = {key.removeprefix("unet."): value for key, value in theirs.items()}
        for kind in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern"):
            if settings.get(kind):
                raise _bad(path, f"it has {kind}, which is not served; a plain LoRA of one rank is")
        return float(settings.get("lora_alpha", rank))
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _bad(path, f"its metadata gives no alpha that is a number ({error})") from error


def _bad(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"the LoRA {path} cannot be used: {why}", code="bad_lora", param="lora")
