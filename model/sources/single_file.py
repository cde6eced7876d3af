"""A single file of Stable Video Diffusion becomes a checkpoint folder in the user's cache, once.

Stability's names    model.diffusion_model., first_stage_model., conditioner.    (model.importers.sgm)
diffusers' names     unet., vae., image_encoder.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from model.catalog import SOURCE_SHA256, ModelEntry, describe
from model.errors import CheckpointError, StorageFull
from model.identity import content_sha256
from model.importers.sgm import Names, adapt
from model.presets import PRESETS, Preset
from model.sources.architecture import single_file_kind
from model.sources.layout import cache_folder, read_header

_log = logging.getLogger(__name__)
ADAPTED: Final = "adapted"
_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_FIRST: Final = {"sgm": "model.diffusion_model.input_blocks.0.0.weight", "diffusers": "unet.conv_in.weight"}
_VAE_FIRST: Final = {
    "sgm": "conditioner.embedders.3.encoder.encoder.conv_in.weight",
    "diffusers": "vae.encoder.conv_in.weight",
}


def adapt_once(file: Path, name: str) -> ModelEntry:
    """The checkpoint of a single file: adapted into the cache the first time, out of the cache from then on.

    Its version is the file's own SHA-256.

    Args:
        name: how requests name it.

    Raises:
        CheckpointError: cut short, of another architecture or size, or with weights that have no place.
        StorageFull: the cache cannot be written.
    """
    header = read_header(file)
    kind = single_file_kind(str(file), header)
    size = size_of(file, header, kind)
    sha256 = content_sha256(file)
    folder = cache_folder() / ADAPTED / f"{file.stem}-{sha256[:12]}"
    if not (folder / "model_index.json").exists():
        _write(file, folder, size, _DTYPES.get(str(header[_FIRST[kind]]["dtype"]), torch.float16), kind, sha256)
    return describe(folder, name)


def size_of(file: Path, header: Mapping[str, Any], kind: str) -> Preset:
    """The preset whose first layers have the file's shapes; its frame count, which no weight tells, by the file's name.

    Raises:
        CheckpointError: of no size that is known.
    """
    widths = [tuple(header.get(key, {"shape": ()})["shape"][:2]) for key in (_FIRST[kind], _VAE_FIRST[kind])]
    fitting = [
        preset
        for preset in PRESETS.values()
        if widths == [(preset.unet.channels[0], 2 * preset.vae.latent_channels), (preset.vae.channels[0], 3)]
    ]
    if not fitting:
        raise CheckpointError(
            f"{file} is of a size that is not known ({widths}): name a folder in diffusers' format", param="model"
        )
    short = re.match(r"svd(?!.*xt)", file.stem.lower().replace("-", "_")) is not None
    return min(fitting, key=lambda preset: (preset.num_frames == 14) is not short)


def _write(file: Path, folder: Path, size: Preset, dtype: torch.dtype, kind: Names, sha256: str) -> None:
    """Write the folder, whole or not at all."""
    _log.info("%s is adapted into %s, once", file.name, folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        adapt(file, partial, size, dtype, names=kind, notes={SOURCE_SHA256: sha256})
        if not folder.exists():  # another process may have been faster
            partial.replace(folder)
    except OSError as error:
        raise StorageFull(
            f"{folder} cannot be written ({error}): make room, or name another cache folder in STILLMOTION_CACHE"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
