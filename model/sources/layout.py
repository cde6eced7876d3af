"""Weight files on disk: which of a component's folder to read, what their headers say, their digests, the user's cache.

diffusers and the hub write a component's weights in these ways:

    diffusion_pytorch_model.safetensors                              one file (transformers: model.safetensors)
    diffusion_pytorch_model.fp16.safetensors                         a variant beside it, or alone
    diffusion_pytorch_model-00001-of-00002.safetensors, ...          shards, with
    diffusion_pytorch_model.safetensors.index.json                   an index of which weight is in which
    diffusion_pytorch_model.fp16-00001-of-00002.safetensors, ...     shards of a variant, with
    diffusion_pytorch_model.safetensors.index.fp16.json              their index

Each component is chosen for itself, so an autoencoder in float16 may lie beside a denoiser in float32.

A weight file is hashed once: its digest is remembered in the user's cache folder under its path, together with its
size, inode and modification time. A file of which one of these has changed is hashed again. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from model.errors import CheckpointError

_log = logging.getLogger(__name__)
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


_DIGESTS: Final = "digests.json"
_MOST_DIGESTS: Final = 1000
"""Digests remembered: the file is read and written for each new one."""
_BLOCK: Final = 1 << 23
"""Bytes read and hashed at a time: a thread waits for the interpreter between two."""
_WRITING: Final = threading.Lock()


def cache_folder() -> Path:
    """The user's cache folder for stillmotion; it may not exist yet. STILLMOTION_CACHE names another."""
    if named := os.environ.get("STILLMOTION_CACHE"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stillmotion"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "stillmotion" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillmotion"


class HashCounter:
    """Bytes read for hashing by this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0

    def add(self, count: int) -> None:
        """`count` more bytes were read."""
        with self._lock:
            self.bytes += count


HASHED: Final = HashCounter()


def read_into(digest: hashlib._Hash, file: Path) -> None:
    """Hash a file's content, and count its bytes."""
    block = memoryview(bytearray(min(_BLOCK, file.stat().st_size + 1)))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            digest.update(block[:count])
            HASHED.add(count)


def signature(files: Iterable[Path]) -> str:
    """What changes when one of the files does: names, sizes, inodes and modification times."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file} {stat.st_size} {stat.st_ino} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def remembered(key: str, files: Iterable[Path], compute: Callable[[], str]) -> str:
    """The digest `compute` gave for these files, as long as none of them has changed since.

    Args:
        key: what the digest is of, such as a path; one digest is remembered for each.
    """
    files = list(files)
    if (known := recalled(key, files)) is not None:
        return known
    current = signature(files)
    value = compute()
    _write_digest(cache_folder() / _DIGESTS, key, [current, value])
    return value


def recalled(key: str, files: Iterable[Path]) -> str | None:
    """The digest that is remembered under a key, if these files have not changed since; None if there is none."""
    entry = _read_digests(cache_folder() / _DIGESTS).get(key)
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == signature(files):
        return str(entry[1])
    return None


def _read_digests(store: Path) -> dict[str, object]:
    try:
        values = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write_digest(store: Path, key: str, entry: list[str]) -> None:
    """Add an entry; where two processes do so at once, one of the two is computed again another time."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with _WRITING:
            entries = _read_digests(store) | {key: entry}
            text = json.dumps(dict(list(entries.items())[-_MOST_DIGESTS:]))
            with tempfile.NamedTemporaryFile("w", dir=store.parent, prefix=".digests", delete=False) as stream:
                stream.write(text)
            Path(stream.name).replace(store)
    except OSError as error:
        _log.info("%s cannot be written (%s): weight files are hashed at each start", store, error)
