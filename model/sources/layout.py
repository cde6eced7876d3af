"""Which weight files a component's folder holds, and which of them to read. Imports no torch.

diffusers and the hub write a component's weights in these ways:

    diffusion_pytorch_model.safetensors                              one file (transformers: model.safetensors)
    diffusion_pytorch_model.fp16.safetensors                         a variant beside it, or alone
    diffusion_pytorch_model-00001-of-00002.safetensors, ...          shards, with
    diffusion_pytorch_model.safetensors.index.json                   an index of which weight is in which
    diffusion_pytorch_model.fp16-00001-of-00002.safetensors, ...     shards of a variant, with
    diffusion_pytorch_model.safetensors.index.fp16.json              their index

Each component is chosen for itself, so an autoencoder in float16 may lie beside a denoiser in float32.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from model.errors import CheckpointError

Precision = Literal["float32", "float16", "bfloat16"]

_WEIGHTS: Final = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-\d{5})?(?:\.(?P<late>\w+))?\.safetensors"
)
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}")
_INDEX: Final = re.compile(r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
PICKLES: Final = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
"""Python pickles: reading one runs the code that it holds."""
_ORDER: Final[dict[Precision, tuple[str, ...]]] = {
    "float32": ("", "fp16", "bf16"),
    "float16": ("fp16", "", "bf16"),
    "bfloat16": ("bf16", "", "fp16"),
}
"""Variants by preference; `""` is the one without a name."""
_MOST_HEADER: Final = 100 * 2**20


@dataclass(frozen=True, slots=True)
class ComponentFiles:
    """The weight files of one component that are read.

    Args:
        variant: as in the files' names; empty for the default one.
        files: in order of name.
    """

    folder: Path
    variant: str
    files: tuple[Path, ...]
    index: Path | None = None


@dataclass(slots=True)
class _Variant:
    """File names of one variant."""

    single: str | None = None
    shards: list[str] = field(default_factory=list)
    index: str | None = None

    @property
    def names(self) -> list[str]:
        """What has to be read of it: one file where there is one, else index and shards."""
        if self.single is not None:
            return [self.single]
        return [*([self.index] if self.index else []), *sorted(self.shards)]


def _variants(names: Iterable[str]) -> dict[str, _Variant]:
    found: dict[str, _Variant] = {}
    for name in names:
        if match := _INDEX.fullmatch(name):
            found.setdefault(match["variant"] or "", _Variant()).index = name
        elif match := _WEIGHTS.fullmatch(name):
            variant = found.setdefault(match["variant"] or match["late"] or "", _Variant())
            if _SHARD.search(name):
                variant.shards.append(name)
            else:
                variant.single = name
    return found


def is_weight(name: str) -> bool:
    """Whether a file holds weights, in whatever format, or is an index of some."""
    suffix = Path(name).suffix
    return suffix in PICKLES | {".safetensors", ".msgpack", ".onnx", ".h5"} or ".index." in name


def choose_weights(names: Collection[str], precision: Precision) -> tuple[str, list[str]]:
    """The variant that suits a dtype best, and the names of its files.

    Args:
        names: of the files in a component's folder.

    Returns:
        ("", []) where there are no safetensors of a known variant.
    """
    found = _variants(names)
    for variant in (*_ORDER[precision], *sorted(found)):
        if variant in found and found[variant].names:
            return variant, found[variant].names
    return "", []


def component_files(folder: Path, precision: Precision) -> ComponentFiles:
    """The weight files of a component's folder to read for a dtype.

    Raises:
        CheckpointError: there are none, only pickles, or the shards do not match their index.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder.parent} lacks the folder {folder.name}/; {INCOMPLETE}", param="model")
    names = [file.name for file in folder.iterdir()]
    variant, chosen = choose_weights(names, precision)
    if not chosen:
        if pickles := sorted(name for name in names if Path(name).suffix in PICKLES):
            raise pickle_refused(folder / pickles[0])
        raise CheckpointError(f"{folder} holds no weights (*.safetensors); {INCOMPLETE}", param="model")
    index = next((folder / name for name in chosen if name.endswith(".json")), None)
    files = [folder / name for name in chosen if not name.endswith(".json")]
    if any(_SHARD.search(file.name) for file in files) or index is not None:
        files = _indexed(folder, index)
    for file in files:
        if not file.exists():  # a link of a hub cache whose blob has gone
            raise CheckpointError(f"{file} points to nothing; {INCOMPLETE}", param="model")
    return ComponentFiles(folder, variant, tuple(files), index)


INCOMPLETE: Final = "the folder is not complete: copy or download it again (stillmotion models pull ID resumes)"


def _indexed(folder: Path, index: Path | None) -> list[Path]:
    if index is None:
        raise CheckpointError(f"{folder} holds shards without their index; {INCOMPLETE}", param="model")
    try:
        names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error}", param="model") from error
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"{index} names {', '.join(missing)}, which is not there; {INCOMPLETE}", param="model")
    return [folder / name for name in names]


def pickle_refused(file: Path | str) -> CheckpointError:
    """The refusal of a pickle."""
    return CheckpointError(
        f"{file} is a Python pickle, which can run code when it is read, so it is not read: take the .safetensors of "
        "the same weights, or convert it where you trust it (pipeline.save_pretrained(DIR, safe_serialization=True))",
        param="model",
    )


def read_header(file: Path) -> dict[str, Any]:
    """A safetensors file's header, once its size is seen to be what the header says; reads no weight.

    Returns:
        dtype and shape by the weight's name.

    Raises:
        CheckpointError: no safetensors file, or one that was cut short.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
            if not 0 < length <= min(_MOST_HEADER, size - 8):
                raise CheckpointError(f"{file} is no safetensors file, or was cut short; {INCOMPLETE}", param="model")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((weight["data_offsets"][1] for weight in header.values()), default=0)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", param="model") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{file} is no safetensors file: {error}", param="model") from error
    if size < end:
        raise CheckpointError(f"{file} was cut short: it has {size} of {end} bytes; {INCOMPLETE}", param="model")
    return dict(header)


def parameters_in(files: Iterable[Path]) -> tuple[int, frozenset[str]]:
    """How many numbers the files hold, and in which dtypes, by their headers alone. Raises CheckpointError."""
    count, dtypes = 0, set()
    for file in files:
        for weight in read_header(file).values():
            numbers = 1
            for side in weight["shape"]:
                numbers *= side
            count += numbers
            dtypes.add(str(weight["dtype"]))
    return count, frozenset(dtypes)
