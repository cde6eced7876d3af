"""Full-size random svd-xt in every layout that published weights come in, and what each costs to start.

    python -m benchmarks.published_layouts write FOLDER [--size svd-xt]     some 14 GB, to be measured only
    python -m benchmarks.published_layouts measure FOLDER                   a table: seconds, memory, bytes hashed

Layouts: plain names, the fp16 variant, shards with an index, links as in a hub cache, one file in diffusers' names. The
same numbers in all of them; files that are equal are hard links. Each start is a process of its own. Random weights
say nothing of quality: this is for loading only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from cli.table import table
from model.catalog import SIDECAR
from model.checkpoint import save
from model.encoders import build_conditioners
from model.presets import preset
from model.tasks import task
from model.unet import build_unet
from model.vae import build_vae

NETWORKS: Final = ("unet", "vae", "image_encoder")
LAYOUTS: Final = ("plain", "fp16", "sharded", "hub", "single")
START: Final = """
import json, resource, sys, time
began = time.perf_counter()
from model.sources.source import find
from model.user_cache import HASHED
imported = time.perf_counter()
entry = find(sys.argv[1], "float16")
found = time.perf_counter()
from serving.engine.loaded_model import load_model
from serving.engine.settings import EngineSettings
from serving.engine.warmup import warm_up
model = load_model(entry, EngineSettings(device="cpu"))
warm_up(model)
ready = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"version": entry.version, "find_s": found - imported, "ready_s": ready - began,
                  "peak_gib": peak, "hashed": HASHED.bytes}))
"""


def write(folder: Path, size: str) -> None:
    """Write every layout below `folder`."""
    plain, chosen, kind = folder / "plain", preset(size), task("image-to-video")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)  # half of the memory while they are made
    networks = build_unet(chosen, kind), build_vae(chosen), build_conditioners(chosen, kind)
    torch.set_default_dtype(torch.float32)
    save(
        plain,
        unet=networks[0],
        vae=networks[1],
        conditioners=networks[2],
        noise=chosen.noise,
        sidecar={"task": kind.name},
        dtype=torch.float16,
    )
    del networks
    (plain / SIDECAR).unlink()
    for layout in ("fp16", "sharded"):
        linked(plain, folder / layout)
        for network in NETWORKS:
            file = next((folder / layout / network).glob("*.safetensors"))
            if layout == "fp16":
                file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
            elif network == "unet":
                shards(file)
    as_hub_cache(folder / "fp16", folder / "hub" / "models--random--svd-xt")
    tensors = {
        f"{network}.{key}": value
        for network in NETWORKS
        for key, value in load_file(next((plain / network).glob("*.safetensors"))).items()
    }
    (folder / "single").mkdir()
    save_file(tensors, folder / "single" / "svd_xt.safetensors", {"format": "pt"})


def linked(source: Path, folder: Path) -> None:
    """The same files, as hard links."""
    for file in source.rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, target)


def shards(file: Path, count: int = 3) -> None:
    """A weight file becomes shards with an index."""
    tensors = list(load_file(file).items())
    where: dict[str, str] = {}
    for number in range(count):
        name = f"{file.stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = dict(tensors[number::count])
        save_file(part, file.with_name(name), {"format": "pt"})
        where |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": where}
    file.with_name(f"{file.stem}.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()


def as_hub_cache(source: Path, repository: Path) -> None:
    """A snapshot of links to blobs that are named by their hash."""
    commit = "0" * 40
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for file in source.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            blob = repository / "blobs" / (digest if file.suffix == ".safetensors" else digest[:40])
            if not blob.exists():
                os.link(file, blob)
            link = repository / "snapshots" / commit / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))


def source_of(folder: Path, layout: str) -> str:
    """What a user would name."""
    if layout == "hub":
        return "random/svd-xt"
    return str(folder / "single" / "svd_xt.safetensors" if layout == "single" else folder / layout)


def start(folder: Path, layout: str) -> dict[str, Any]:
    """One start in a process of its own; offline, from the caches below `folder`."""
    environment = os.environ | {
        "STILLMOTION_CACHE": str(folder / "cache"),
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", START, source_of(folder, layout)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="Published layouts at full size, with random weights.")
    parser.add_argument("what", choices=["write", "measure"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="svd-xt")
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS))
    options = parser.parse_args()
    if options.what == "write":
        write(options.folder, options.size)
        return
    lines = []
    for layout in options.layouts:
        for attempt in ("first", "second"):
            figures = start(options.folder, layout)
            lines.append(
                (layout, attempt, figures["find_s"], figures["ready_s"], figures["peak_gib"], figures["hashed"] / 1e9)
            )
            print(lines[-1], flush=True)
    print(table(("layout", "start", "to the entry, s", "to ready, s", "peak GiB", "hashed GB"), lines))


if __name__ == "__main__":
    main()
