"""Every command's way from what a user names to a checkpoint. Imports no torch, but for a single file's adaption.

mini-image-to-video                              a shipped checkpoint
DIR                                              a folder in any layout that diffusers writes or the hub serves
stabilityai/stable-video-diffusion-img2vid-xt    a repository of the hub; @REVISION for a branch, tag or commit
svd_xt.safetensors                               a single file, of Stability's or diffusers' names
BASE+FILE                                        a denoiser's own file (AnimateLCM-SVD-xt) on any of these
NAME=SOURCE                                      any of these, named
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from model.catalog import ZOO, ModelEntry, describe, zoo
from model.errors import CheckpointError, InvalidRequest
from model.sources.denoiser_file import combine_once
from model.sources.hub import HubId, fetch, is_complete, parse_hub_id, pulled
from model.sources.layout import PICKLES, Precision, cache_folder, pickle_refused

_NAMED: Final = re.compile(r"(?P<name>[\w.-]+)=(?P<source>.+)")
ADAPTED: Final = "adapted"


def find(text: str, precision: Precision = "float32") -> ModelEntry:
    """The checkpoint that a source names; fetched, or adapted into the cache, as far as it is not there yet.

    Args:
        precision: the dtype it is to be loaded in: chooses between variants of the weights.

    Raises:
        CheckpointError: nothing of that name, or nothing that can be served; the message says what to do.
        MissingExtra: a hub's id without huggingface_hub.
    """
    if not Path(text).exists() and (match := _NAMED.fullmatch(text)):
        return replace(find(match["source"], precision), name=match["name"])
    shipped = ZOO / text
    if shipped.parent == ZOO and (shipped / "model_index.json").exists():  # not where a folder's path replaced ZOO
        return describe(shipped, text)
    path = Path(text)
    if path.is_dir():
        return _of_folder(path, precision)
    if path.is_file():
        return _of_file(path, path.stem)
    base, plus, file = text.rpartition("+")
    if plus and base and Path(file).is_file():
        return combine_once(find(base, precision), Path(file), Path(file).stem)
    if (source := parse_hub_id(text)) is not None:
        return of_hub(source, precision)
    known = ", ".join(entry.name for entry in zoo()) or "none"
    raise CheckpointError(
        f"no model is called {text!r}, and there is no such folder or file; shipped: {known}. A model of the hub is "
        "named ORG/NAME",
        param="model",
    )


def find_all(texts: Sequence[str], precision: Precision = "float32") -> list[ModelEntry]:
    """The checkpoints that several sources name, for a command that takes many.

    Raises:
        InvalidRequest: two of them have one name.
        CheckpointError, MissingExtra: as `find` does.
    """
    entries = [find(text, precision) for text in texts]
    for entry in entries:
        same = [text for text, other in zip(texts, entries, strict=True) if other.name == entry.name]
        if len(same) > 1:
            raise InvalidRequest(
                f"{' and '.join(same)} are both called {entry.name!r}: name one of them, with NAME=SOURCE",
                param="model",
            )
    return entries


def of_hub(source: HubId, precision: Precision) -> ModelEntry:
    """The checkpoint of a repository, fetched as far as it is not in the cache. Raises as `find` does."""
    path = fetch(source, precision)
    return _of_file(path, path.stem) if path.is_file() else describe(path, source.name, precision)


def _of_folder(path: Path, precision: Precision) -> ModelEntry:
    """A pipeline's folder, or one that holds a single file and nothing else that could be meant."""
    files = sorted(path.glob("*.safetensors"))
    if (path / "model_index.json").exists() or (path / "config.pbtxt").exists() or not files:
        return describe(path, precision=precision)
    if len(files) == 1:
        return _of_file(files[0], path.resolve().name)
    raise CheckpointError(
        f"{path} is no pipeline's folder (it has no model_index.json), and holds several single files: name one of "
        f"{', '.join(file.name for file in files)}",
        param="model",
    )


def _of_file(path: Path, name: str) -> ModelEntry:
    if path.suffix in PICKLES:
        raise pickle_refused(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} is no checkpoint: name a folder, or a .safetensors file", param="model")
    from model.sources.single_file import adapt_once

    return adapt_once(path, name)


def available() -> list[tuple[str, ModelEntry | None]]:
    """Checkpoints beside the shipped ones that need no network: what is pulled, and adapted single files.

    Returns:
        what names each, and its checkpoint; None where a download is not complete.
    """
    found: list[tuple[str, ModelEntry | None]] = []
    for source, snapshot in pulled():
        precision = next((one for one in _PRECISIONS if is_complete(snapshot, one)), None)
        entry = None
        if precision is not None:
            try:
                entry = describe(snapshot, source.name, precision)
            except CheckpointError:  # a piece beside the networks is missing
                entry = None
        found.append((str(source), entry))
    for index in sorted((cache_folder() / ADAPTED).glob("*/model_index.json")):
        entry = describe(index.parent, index.parent.name.rpartition("-")[0])
        found.append((str(index.parent), entry))
    return found


_PRECISIONS: Final[tuple[Precision, ...]] = ("float16", "float32", "bfloat16")
