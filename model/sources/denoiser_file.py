"""A denoiser alone in one file, under diffusers' names, on the rest of a Stable Video Diffusion checkpoint: BASE+FILE.

So AnimateLCM-SVD-xt is published: svd-xt's UNet, distilled by consistency (Wang et al. 2024, arXiv 2402.00769), without
what reads the picture and decodes. Its folder in the user's cache is made of links and two small files: nothing is
copied. Names and shapes of the weights are held against the base's before anything is written. Imports no torch.

No weight tells that a denoiser was distilled. Where the file's name holds `lcm`, the checkpoint's defaults are those of
such a one: solver and schedule `lcm` (40 Karras levels of the base's range, every (40 // steps)-th from the top), 4
steps, no guidance; a request may ask for others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, Final

from model.catalog import NETWORKS, PUBLISHED, SIDECAR, SOURCE_SHA256, ModelEntry, describe
from model.errors import CheckpointError, StorageFull
from model.identity import content_sha256
from model.sources.layout import ComponentFiles, cache_folder, component_files, read_header

_log = logging.getLogger(__name__)
ADAPTED: Final = "adapted"
_UNET_FILE: Final = "diffusion_pytorch_model.safetensors"
_DISTILLED: Final = re.compile(r"lcm", re.IGNORECASE)

FEW_STEPS: Final[dict[str, Any]] = {
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 1.0,
    "num_inference_steps": 4,
    "solver": "lcm",
    "schedule": "lcm",
}
"""Defaults of a checkpoint that was distilled by consistency."""


def combine_once(base: ModelEntry, file: Path, name: str) -> ModelEntry:
    """The checkpoint of a base with another denoiser, in the user's cache.

    Its version is a hash over the base's version and the file's SHA-256.

    Args:
        name: how requests name it.

    Raises:
        CheckpointError: the file is cut short, or its weights are not those of the base's denoiser, by name and shape.
        StorageFull: the cache cannot be written.
    """
    if base.exported or base.task.name != PUBLISHED["task"]:
        raise CheckpointError(
            f"{base.name} is no image-to-video checkpoint with weights that another denoiser could stand in for",
            param="model",
        )
    weights = component_files(base.path / "unet", base.precision)
    _compare(file, weights)
    sha256 = hashlib.sha256(f"{base.version} {content_sha256(file)}".encode()).hexdigest()
    folder = cache_folder() / ADAPTED / f"{file.stem}-{sha256[:12]}"
    if not _whole(folder):
        _write(base, file, folder, sha256)
    return describe(folder, name, base.precision)


def _compare(file: Path, weights: ComponentFiles) -> None:
    """Refuse a file whose weights are not those of the base's denoiser."""
    found = {key: tuple(value["shape"]) for key, value in read_header(file).items()}
    wanted = {key: tuple(value["shape"]) for one in weights.files for key, value in read_header(one).items()}
    for problem, names in (
        ("lacks", wanted.keys() - found.keys()),
        ("has what the base's denoiser has not:", found.keys() - wanted.keys()),
        ("has in another shape:", {key for key in wanted.keys() & found.keys() if wanted[key] != found[key]}),
    ):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise CheckpointError(
                f"{file} is not of {weights.folder.parent}'s size: it {problem} {some} ({len(names)} in all); "
                "name the base that it was trained from",
                param="model",
            )


def _whole(folder: Path) -> bool:
    """Whether every link of a folder still leads to something."""
    return (folder / SIDECAR).is_file() and all(path.exists() for path in folder.rglob("*"))


def _write(base: ModelEntry, file: Path, folder: Path, sha256: str) -> None:
    """Write the folder, whole or not at all."""
    _log.info("%s on %s is put together in %s", file.name, base.name, folder)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    sidecar_file = base.path / SIDECAR
    sidecar = json.loads(sidecar_file.read_text()) if sidecar_file.exists() else dict(PUBLISHED)
    sidecar |= {
        "defaults": sidecar["defaults"] | (FEW_STEPS if _DISTILLED.search(file.stem) else {}),
        "adapted_from": file.name,
        SOURCE_SHA256: sha256,
    }
    try:
        (partial / "unet").mkdir(parents=True)
        for part in base.path.iterdir():
            if part.is_dir() and (part.name in NETWORKS or part.name in _PARTS) and part.name != "unet":
                (partial / part.name).symlink_to(part.resolve(), target_is_directory=True)
        shutil.copyfile(base.path / "model_index.json", partial / "model_index.json")
        shutil.copyfile(base.path / "unet" / "config.json", partial / "unet" / "config.json")
        (partial / "unet" / _UNET_FILE).symlink_to(file.resolve())
        (partial / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)  # one whose links lead nowhere any more
        partial.replace(folder)
    except OSError as error:
        raise StorageFull(
            f"{folder} cannot be written ({error}): make room, or name another cache folder in STILLMOTION_CACHE"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


_PARTS: Final = frozenset({"scheduler", "feature_extractor"})
"""Folders of a checkpoint beside its networks."""
