"""The export manifest, export.json: the checkpoint and the tools of an export, and the hash of every file. No torch.

REPO/NAME/config.pbtxt says which version is served (it is Triton's own configuration), REPO/NAME/3/ is a version:
export.json, onnx/unet.onnx and the other graphs, engines/unet.engine where compiled, and the checkpoint's small files
(model_index.json, unet/config.json, ...) without its weights.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import CheckpointError

MANIFEST = "export.json"
TRITON_CONFIG = "config.pbtxt"
FORMAT = 1
ONNX_FOLDER = "onnx"
ENGINE_FOLDER = "engines"


@dataclass(frozen=True, slots=True)
class EngineBuild:
    """How engines were compiled.

    Args:
        builder: `tensorrt` or `tensorrt_rtx`.
        version: the builder's; another one's engines are not read.
        capabilities: CUDA compute capabilities they run on, such as `8.9`; empty for every GPU the builder serves.
        gpu: the GPU they were compiled on, or None where there was none.
        stripped: they hold no weights, which are put in from the graphs when they are loaded.
    """

    builder: str
    version: str
    capabilities: tuple[str, ...]
    gpu: str | None
    stripped: bool = False


@dataclass(frozen=True, slots=True)
class ExportManifest:
    """What an exported folder is.

    Args:
        checkpoint, checkpoint_version: what it was made from.
        backend: what it was exported for.
        dtype: of the denoiser's weights.
        height, width: of the video, in pixels; `free_size`: whether the graphs take others.
        files: SHA-256 of each, by its path in the folder.
        tools: versions of what wrote them.
        parity: the gate's measurements, as it reports them.
        fp8: whether the denoiser's large layers read 8-bit floats (export.fp8).
    """

    checkpoint: str
    checkpoint_version: str
    task: str
    backend: str
    dtype: str
    height: int
    width: int
    free_size: bool
    files: Mapping[str, str]
    tools: Mapping[str, str]
    parity: tuple[Mapping[str, Any], ...]
    built: EngineBuild | None = None
    fp8: bool = False
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        (folder / MANIFEST).write_text(json.dumps(asdict(self), indent=2, sort_keys=True) + "\n")

    def check_files(self, folder: Path) -> None:
        """Raise CheckpointError unless every file is there and has its hash."""
        for name, digest in self.files.items():
            file = folder / name
            if not file.is_file():
                raise CheckpointError(f"{folder} lacks {name}; export it again", param="model")
            if file_hash(file) != digest:
                raise CheckpointError(f"{file} is not the file that was exported; export it again", param="model")


def read_manifest(folder: Path) -> ExportManifest:
    """The folder's manifest.

    Raises:
        CheckpointError: it has none, or one of another format.
    """
    file = folder / MANIFEST
    try:
        fields = json.loads(file.read_text())
        if fields["format"] != FORMAT:
            raise CheckpointError(f"{file} has format {fields['format']}, not {FORMAT}; export it again", param="model")
        built = fields.pop("built")
        if built is not None:
            built = EngineBuild(**built | {"capabilities": tuple(built["capabilities"])})
        return ExportManifest(**fields | {"built": built, "parity": tuple(fields["parity"])})
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is missing or not complete: {error}", param="model") from error


def check_engine(built: EngineBuild, builder: str, version: str, capability: str | None) -> None:
    """Refuse an engine that this machine cannot run, before its gigabytes are read.

    Args:
        builder, version: what is installed here.
        capability: of the GPU here, such as `8.9`; None where there is none.

    Raises:
        CheckpointError: another builder, another version of it, no GPU, or another GPU.
    """
    if built.builder != builder:
        raise CheckpointError(f"the engine is {built.builder}'s, and {builder} is asked to run it", code="wrong_engine")
    if built.version != version:
        raise CheckpointError(
            f"the engine was compiled by {builder} {built.version}, and {version} is installed: install that version, "
            "or export again",
            code="wrong_engine",
        )
    if capability is None:
        raise CheckpointError("an engine runs on an NVIDIA GPU, and there is none here", code="wrong_engine")
    if built.capabilities and capability not in built.capabilities:
        raise CheckpointError(
            f"the engine was compiled for compute capability {', '.join(built.capabilities)}, and this GPU has "
            f"{capability}: export again for it",
            code="wrong_engine",
        )


def file_hash(file: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def served_version(model: Path) -> Path | None:
    """The version folder that REPO/NAME serves, by its config.pbtxt; None where the folder is no repository's.

    Raises:
        CheckpointError: the configuration names no version that is there.
    """
    config = model / TRITON_CONFIG
    if not config.is_file():
        return None
    match = re.search(r"versions:\s*\[?\s*(\d+)", config.read_text())
    folder = model / match[1] if match else None
    if folder is None or not folder.is_dir():
        raise CheckpointError(f"{config} names no version that is installed; export the model again", param="model")
    return folder
