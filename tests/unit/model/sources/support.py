"""A tiny random checkpoint of the published pipeline, in the layouts that diffusers and the hub have."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model.catalog import SIDECAR
from model.presets import preset
from model.tasks import task
from model.testing import build_random

NETWORKS = ("unet", "vae", "image_encoder")


def published(folder: Path, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """A folder as `StableVideoDiffusionPipeline.save_pretrained` writes it, without stillmotion.json."""
    build_random(folder, preset("tiny"), task("image-to-video"), seed=seed)
    (folder / SIDECAR).unlink()
    for name in NETWORKS:
        file = weights_of(folder, name)
        save_file({key: value.to(dtype) for key, value in load_file(file).items()}, file, {"format": "pt"})
    return folder


def weights_of(folder: Path, network: str) -> Path:
    """The one weight file of a network."""
    return next((folder / network).glob("*.safetensors"))


def as_variant(source: Path, folder: Path, variant: str = "fp16") -> Path:
    """The same, with the variant in the names."""
    shutil.copytree(source, folder)
    for name in NETWORKS:
        file = weights_of(folder, name)
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    return folder


def as_shards(source: Path, folder: Path, variant: str = "", count: int = 3) -> Path:
    """The same, the denoiser and the picture encoder in shards with an index."""
    shutil.copytree(source, folder)
    for name in ("unet", "image_encoder"):
        file = weights_of(folder, name)
        tensors = list(load_file(file).items())
        suffix = f".{variant}" if variant else ""
        where = {}
        for number in range(count):
            shard = f"{file.stem}{suffix}-{number + 1:05}-of-{count:05}.safetensors"
            part = dict(tensors[number::count])
            save_file(part, file.with_name(shard), {"format": "pt"})
            where |= dict.fromkeys(part, shard)
        index = file.with_name(f"{file.stem}.safetensors.index{suffix}.json")
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
        file.unlink()
    return folder


def as_single_file(source: Path, file: Path) -> Path:
    """The same in one file, under diffusers' names."""
    tensors = {
        f"{name}.{key}": value for name in NETWORKS for key, value in load_file(weights_of(source, name)).items()
    }
    save_file(tensors, file, {"format": "pt"})
    return file


def as_hub_cache(source: Path, root: Path, repository: str = "someone/a-finetune") -> Path:
    """A snapshot of links to blobs, weights named by SHA-256 and the rest by git's hash."""
    commit = root / f"models--{repository.replace('/', '--')}" / "snapshots" / ("c" * 40)
    blobs = commit.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    for file in source.rglob("*"):
        if file.is_file():
            link = commit / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            data = file.read_bytes()
            name = hashlib.sha256(data).hexdigest() if file.suffix == ".safetensors" else hashlib.sha1(data).hexdigest()
            (blobs / name).write_bytes(data)
            link.symlink_to(os.path.relpath(blobs / name, link.parent))
    return commit
