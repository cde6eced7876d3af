"""The model catalog: what a checkpoint's folder says of itself, and which LoRAs it offers. No torch.

A folder is a diffusers pipeline folder (model_index.json). Ours carry `stillmotion.json` beside it: task, sizes and
defaults. A folder without one (published Stable Video Diffusion weights) is taken by what its configs say. Other
sources (a model hub, single files) are made into folders by model.sources.

`attach_loras` adds the LoRA files that a command names to the checkpoints that they were trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.errors import CheckpointError, InvalidRequest, StillmotionError
from model.export_manifest import MANIFEST, TRITON_CONFIG, file_hash, read_manifest, served_version
from model.identity import SOON, PendingVersion, content_sha256s, unread_bytes
from model.lora.catalog import FOLDER, LoraEntry, choose_lora, describe_lora, offered_in
from model.params import Params
from model.shapes import VAE_STRIDE
from model.sources.architecture import check_pipeline
from model.sources.hub import repository_name
from model.sources.layout import Precision, component_files, read_into, recalled, remembered
from model.tasks import IMAGE_TO_VIDEO, TASKS, ContextSource, TaskSpec

ZOO = Path(__file__).parent / "zoo"
SIDECAR = "stillmotion.json"
FIGURES = "metrics.json"
PROFILE = "profile.json"
OPTIONS = "options.json"
_MEASURED = frozenset({FIGURES, PROFILE, OPTIONS})

SOURCE_SHA256 = "source_sha256"
"""Key of a sidecar: the hash of the single file that the folder was made from, which then is its version."""
NETWORKS = ("unet", "vae", "image_encoder", "text_encoder")
"""Folders of a checkpoint that hold weights; the last two as the task reads pictures or text."""
_PUBLISHED_CONFIGS = ("scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json")

_OPTIONAL = frozenset({"lora", "lora_scale"})
"""Settings that a request may have none of."""

PUBLISHED: dict[str, Any] = {
    "task": IMAGE_TO_VIDEO.name,
    "width": 1024,
    "height": 576,
    "defaults": {
        "fps": 7,
        "motion_bucket_id": 127,
        "noise_aug_strength": 0.02,
        "min_guidance_scale": IMAGE_TO_VIDEO.guidance_range[0],
        "max_guidance_scale": IMAGE_TO_VIDEO.guidance_range[1],
        "num_inference_steps": 25,
        "solver": "euler",
        "schedule": "karras",
        "decode_chunk_size": 8,
        "resize_mode": "crop",
    },
}
"""stillmotion.json of a folder without one: published Stable Video Diffusion."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A checkpoint that can be served.

    Args:
        name: how requests name it.
        path: its folder.
        task: what it does.
        identity: its version, or what computes it meanwhile.
        num_frames: frame counts it can make.
        height, width: the size it was trained at, the default.
        unit: what height and width must be multiples of.
        defaults: the value of each setting a request leaves out.
        exported: a folder that `stillmotion export` wrote: graphs in place of weights (model.export_manifest).
        fixed_size: it makes its own size only.
        previews: it brings a map from latents to colours (model.latent_preview); published weights do not.
        frame_noise: root mean square of the error of its frames between given ends, in levels of 0 to 255
            (model.media.end_frames); 0 where its folder does not tell.
        loras: what can be asked for by `lora`: those in its folder's `loras`, and those the operator adds.
        precision: the dtype that its weight files were chosen for, where a folder holds several variants.
    """

    name: str
    path: Path
    task: TaskSpec
    identity: str | PendingVersion
    num_frames: tuple[int, ...]
    height: int
    width: int
    unit: int
    defaults: dict[str, Any]
    exported: bool = False
    fixed_size: bool = False
    previews: bool = False
    frame_noise: float = 0.0
    loras: tuple[LoraEntry, ...] = ()
    precision: Precision = "float32"

    @property
    def version(self) -> str:
        """First 12 hex digits of a hash over the names and contents of the files it is read from."""
        return self.identity if isinstance(self.identity, str) else self.identity.result()

    def resolve(self, requested: dict[str, Any], seed: int) -> Params:
        """Complete settings from those a request names (None or absent: the default) and a seed.

        Raises:
            InvalidRequest: a field the task does not have or that is missing, a value out of range, a frame count or
                size this checkpoint cannot make, or a LoRA that it does not offer.
        """
        task, legal = self.task.name, self.task.settings
        requested = {name: value for name, value in requested.items() if value is not None}
        for name in requested:
            if name not in legal:
                raise InvalidRequest(f"{task} has no field {name!r}; leave it out", param=name, code="unknown_field")
        values: dict[str, Any] = {
            "num_frames": self.num_frames[0],
            "height": self.height,
            "width": self.width,
            "seed": seed,
        }
        values |= {name: value for name, value in self.defaults.items() if name in legal}
        values |= requested | self._lora(requested)
        for name in sorted(legal - values.keys() - _OPTIONAL):
            raise InvalidRequest(f"{name} is required for {task}", param=name, code="missing_field")
        if values["num_frames"] not in self.num_frames:
            can = " or ".join(map(str, self.num_frames))
            raise InvalidRequest(f"{self.name} makes {can} frames, not {values['num_frames']}", param="num_frames")
        for side in ("height", "width"):
            if self.fixed_size and values[side] != getattr(self, side):
                raise InvalidRequest(
                    f"{self.name} was exported for {self.width}x{self.height} only; export it with --free-size",
                    param=side,
                )
            if values[side] % self.unit or not self.unit <= values[side] <= 4 * max(self.height, self.width):
                raise InvalidRequest(
                    f"{side} must be a multiple of {self.unit} from {self.unit} to {4 * max(self.height, self.width)} "
                    f"for {self.name}, not {values[side]}",
                    param=side,
                )
        return self.task.params(**values)

    def _lora(self, requested: dict[str, Any]) -> dict[str, Any]:
        """The LoRA as complete settings have it: with its version, and with a strength."""
        if "lora" not in requested:
            return {}
        lora = choose_lora(requested["lora"], self.loras, self.name)
        return {"lora": lora.pinned, "lora_scale": requested.get("lora_scale", 1.0)}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no model folder: it has no {path.name}", param="model") from None
    except ValueError as error:  # no JSON, or not even text
        raise CheckpointError(f"{path} is not valid JSON: {error}", param="model") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", param="model") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object", param="model")
    return values


def folder_version(path: Path) -> str:
    """First 12 hex digits of a SHA-256 over every config and weight file, by name; read once, then remembered.

    Of any folder, a training's start among them; `checkpoint_version` is of what a checkpoint is loaded from. Measured
    figures do not count, nor do LoRAs, which have versions of their own.
    """
    files = [
        Path(root) / name
        for root, _, names in os.walk(path, followlinks=True)
        for name in names
        if Path(name).suffix in {".json", ".safetensors"} and name not in _MEASURED
    ]
    return str(_files_version(path, [file for file in files if file.relative_to(path).parts[0] != FOLDER]))


def checkpoint_version(path: Path, task: TaskSpec, precision: Precision) -> str | PendingVersion:
    """First 12 hex digits of a SHA-256 over the files that a folder of ours is loaded from, and over no others.

    So strangers beside them, and variants of the weights that are not loaded, change nothing; links are followed.

    Raises:
        CheckpointError: a component's weights are missing or not complete, or they are pickles.
    """
    kinds = _CONTEXT_FILES[task.context]
    networks = ["unet", "vae", *(name for name in kinds if name in NETWORKS)]
    files = [path / name for name in ("model_index.json", SIDECAR, "scheduler/scheduler_config.json")]
    files += [path / name for name in kinds if name not in NETWORKS and (path / name).is_file()]
    for folder in (path / name for name in networks):
        weights = component_files(folder, precision)
        files += [folder / "config.json", *weights.files, *([weights.index] if weights.index else [])]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{path} is not complete: it has no {file.relative_to(path)}", param="model")
    return _files_version(path, files)


_CONTEXT_FILES: dict[ContextSource, tuple[str, ...]] = {
    "image": ("image_encoder", "feature_extractor/preprocessor_config.json"),
    "image-pair": ("image_encoder", "feature_extractor/preprocessor_config.json", "conditioning.safetensors"),
    "text": (
        "text_encoder",
        *(
            f"tokenizer/{name}"
            for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                         "special_tokens_map.json", "added_tokens.json")
        ),
    ),
}  # fmt: skip
"""What is read of a checkpoint's folder to encode requests: networks, and files (where they are there)."""


def _files_version(path: Path, files: Sequence[Path]) -> str | PendingVersion:
    """Of the names and contents of a folder's files; remembered until one of them changes."""
    files = sorted(files)

    def compute() -> str:
        digest = hashlib.sha256()
        for file in files:
            digest.update(str(file.relative_to(path)).encode())
            read_into(digest, file)
        return digest.hexdigest()

    names = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:8]
    key = f"folder {path.resolve()} {names}"

    def version() -> str:
        return remembered(key, files, compute)[:12]

    large = sum(file.stat().st_size for file in files) > SOON and recalled(key, files) is None
    return PendingVersion(version) if large else version()


def published_version(path: Path, precision: Precision) -> str | PendingVersion:
    """First 12 hex digits of a SHA-256 over the names and hashes of the files that published weights are read from.

    Raises:
        CheckpointError: a component's weights are missing or not complete.
    """
    networks = [path / name for name in NETWORKS if name != "text_encoder"]
    files = [path / name for name in _PUBLISHED_CONFIGS]
    for folder in networks:
        files += [folder / "config.json", *component_files(folder, precision).files]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{path} is not complete: it has no {file.relative_to(path)}", param="model")

    def compute() -> str:
        digest = hashlib.sha256()
        for file, sha256 in zip(files, content_sha256s(files), strict=True):
            digest.update(f"{file.relative_to(path).as_posix()} {sha256}\n".encode())
        return digest.hexdigest()[:12]

    return PendingVersion(compute) if unread_bytes(files) > SOON else compute()


def describe(path: Path, name: str | None = None, precision: Precision = "float32") -> ModelEntry:
    """What the folder holds.

    Args:
        name: how requests name it; by default the folder's name, or the repository's for a hub cache's snapshot.
        precision: the dtype it is to be loaded in, which chooses between variants of its weights.

    Raises:
        CheckpointError: no diffusers pipeline folder, of another architecture, not complete, or of a task this version
            does not know.
    """
    name = name or repository_name(path.absolute()) or path.resolve().name
    if (path / TRITON_CONFIG).is_file() and (version := served_version(path)):
        path = version
    exported = (path / MANIFEST).exists()
    check_pipeline(str(path), _read_json(path / "model_index.json"))
    sidecar = _read_json(path / SIDECAR) if (path / SIDECAR).exists() else PUBLISHED
    unet = _read_json(path / "unet" / "config.json")
    try:
        return _entry(path, name, sidecar, unet, exported, precision)
    except StillmotionError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its {SIDECAR} or unet/config.json is not that of a model served here ({error!r})", param="model"
        ) from error


def _entry(
    path: Path, name: str, sidecar: dict[str, Any], unet: dict[str, Any], exported: bool, precision: Precision
) -> ModelEntry:
    if sidecar["task"] not in TASKS:
        raise CheckpointError(f"{path} is for the task {sidecar['task']!r}, which is not known here", param="model")
    return ModelEntry(
        name=name,
        path=path,
        task=TASKS[sidecar["task"]],
        identity=_version(path, sidecar, exported, precision),
        num_frames=(int(unet.get("num_frames", 25)),),
        height=int(sidecar["height"]),
        width=int(sidecar["width"]),
        unit=VAE_STRIDE * 2 ** (len(unet["block_out_channels"]) - 1),
        defaults=dict(sidecar["defaults"]),
        exported=exported,
        fixed_size=exported and not read_manifest(path).free_size,
        previews=bool(sidecar.get("latent_colours")),
        frame_noise=float(sidecar.get("frame_noise", 0.0)),
        loras=() if exported or not (path / FOLDER).is_dir() else offered_in(path / FOLDER),
        precision=precision,
    )


def _version(path: Path, sidecar: dict[str, Any], exported: bool, precision: Precision) -> str | PendingVersion:
    if exported:
        return file_hash(path / MANIFEST)[:12]
    if sidecar is PUBLISHED:
        return published_version(path, precision)
    if SOURCE_SHA256 in sidecar:
        return str(sidecar[SOURCE_SHA256])[:12]
    return checkpoint_version(path, TASKS[sidecar["task"]], precision)


def zoo() -> list[ModelEntry]:
    """The shipped checkpoints, by name."""
    folders = sorted(path.parent for path in ZOO.glob("*/model_index.json"))
    return [describe(path, path.name) for path in folders]


def attach_loras(entries: Sequence[ModelEntry], sources: Sequence[str]) -> list[ModelEntry]:
    """The checkpoints, with the LoRAs that are named added to those in their own folders.

    A LoRA goes to the checkpoint that its file says it was trained on; where that is not served, or not said, to the
    only one that could take it.

    Args:
        sources: NAME=FILE, FILE, or a folder of files each; a name takes the place of the same name in a folder of the
            checkpoint's own.

    Raises:
        CheckpointError: a file cannot be used.
        InvalidRequest: a path that is not there, a name that is given twice, or no one checkpoint to take it.
    """
    loras = [lora for text in sources for lora in _loras_of(text)]
    names = [lora.name for lora in loras]
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"two LoRAs are called {name!r}: name them with NAME=FILE", param="lora")
    served = {entry.name: entry for entry in entries}
    for lora in loras:
        entry = _matching_checkpoint(lora, list(served.values()))
        served[entry.name] = with_lora(entry, lora)
    return list(served.values())


def with_lora(entry: ModelEntry, lora: LoraEntry) -> ModelEntry:
    """The checkpoint with one more LoRA, in place of one of the same name."""
    others = tuple(one for one in entry.loras if one.name != lora.name)
    return replace(entry, loras=(*others, lora))


def _loras_of(text: str) -> tuple[LoraEntry, ...]:
    name, separator, file = text.partition("=")
    if separator and not Path(text).exists():
        path = Path(file)
    else:
        name, path = "", Path(text)
    if path.is_dir() and not name:
        return offered_in(path)
    if not path.is_file():
        raise InvalidRequest(f"{path} is no file: --lora takes NAME=FILE, FILE or a folder of files", param="lora")
    return (describe_lora(path, name or None),)


def _matching_checkpoint(lora: LoraEntry, entries: Sequence[ModelEntry]) -> ModelEntry:
    """The checkpoint that is to offer it."""
    able = [
        entry
        for entry in entries
        if "lora" in entry.task.settings and lora.task in ("", entry.task.name) and not entry.exported
    ]
    based = [entry for entry in able if entry.name == lora.base.partition("@")[0]]
    candidates = based or able
    if len(candidates) != 1:
        which = ", ".join(entry.name for entry in able) or "none that could"
        raise InvalidRequest(
            f"it cannot be told which checkpoint the LoRA {lora.name!r} (of {lora.base or 'an unnamed one'}) is for; "
            f"served: {which}. Name its checkpoint alone with --model",
            param="lora",
        )
    return candidates[0]
