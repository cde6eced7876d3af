"""The LoRA catalog: what a LoRA's safetensors file says of itself, read from its header without torch.

A file is one safetensors with diffusers' and PEFT's key names, `unet.LAYER.lora_A.weight` [r, in] and
`unet.LAYER.lora_B.weight` [out, r], which stand for W + alpha / r * B A (Hu et al. 2021, arXiv 2106.09685). LAYER is a
projection of a temporal block's self-attention, and nothing else: camera motion is learned there (Blattmann et al.
2023, arXiv 2311.15127, section 4.3). The header's metadata names it, its task, and the checkpoint it was trained on.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model.errors import CheckpointError, InvalidRequest

FOLDER: Final = "loras"
"""Of a checkpoint's folder: each safetensors file in it is a LoRA that the checkpoint offers."""
SUFFIX: Final = ".safetensors"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PINNED: Final = re.compile(rf"({NAME.pattern})@([0-9a-f]{{12}})")
_KEY: Final = re.compile(
    r"(?:unet\.)?(.+\.temporal_transformer_blocks\.\d+\.attn1\.(?:to_q|to_k|to_v|to_out\.0))\.lora_(A|B)\.weight"
)
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
    tensors, metadata = _header(path)
    rank = _rank(path, tensors)
    if "rank" in metadata and metadata["rank"] != str(rank):
        raise _bad(path, f"its metadata says rank {metadata['rank']}, and its weights have rank {rank}")
    name = name or metadata.get("name") or path.stem
    if not NAME.fullmatch(name):
        raise _bad(path, f"{name!r} is no name for a LoRA: letters, digits, '.', '_' and '-', at most 64")
    with path.open("rb") as stream:
        version = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    alpha = _alpha(path, metadata, rank)
    return LoraEntry(name, path, version, rank, alpha, metadata.get("task", ""), metadata.get("base", ""))


def offered_in(folder: Path) -> tuple[LoraEntry, ...]:
    """The LoRAs whose files lie in a folder, by file name. Raises CheckpointError for one that is not served."""
    return tuple(describe_lora(path) for path in sorted(folder.glob(f"*{SUFFIX}")))


def split_key(key: str) -> tuple[str, str] | None:
    """The layer a tensor belongs to, and which of the two it is (`A` or `B`); None for a key of something else."""
    match = _KEY.fullmatch(key)
    return None if match is None else (match[1], match[2])


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors' descriptions by key, and the metadata."""
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
    return tensors, metadata


def _rank(path: Path, tensors: dict[str, Any]) -> int:
    """The one rank of all layers."""
    ranks: dict[str, dict[str, int]] = {}
    for key, one in sorted(tensors.items()):
        part = split_key(key)
        if part is None:
            raise _bad(
                path,
                f"{key} is of no layer that is served: those are to_q, to_k, to_v and to_out.0 of the self-attention "
                "(attn1) of temporal_transformer_blocks, each with lora_A.weight and lora_B.weight",
            )
        layer, half = part
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
