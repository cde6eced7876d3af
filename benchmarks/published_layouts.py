"""Full-size random svd-xt in every layout that published weights come in, and what `generate` costs from each.

    python -m benchmarks.published_layouts write FOLDER                  some 12 GB, to be measured only
    python -m benchmarks.published_layouts measure FOLDER [--write]      a table: seconds, memory, bytes hashed

Layouts (the same numbers in all; equal files are hard links):

    plain      diffusers' default names, float16
    fp16       the fp16 variant only
    sharded    the denoiser in three shards with an index
    links      a hub cache's snapshot, named as a folder
    hub        a hub id, through a loopback hub (HF_ENDPOINT) and the real huggingface_hub client
    single     svd_xt.safetensors, under Stability's names
    plain-25   plain with 25 frames, which the single file always has (no weight tells a frame count)

Every row is one `stillmotion generate` (256x256, 2 steps, no guidance) in a process of its own, its files in the page
cache beforehand. The first start of a layout has empty caches. Random weights say nothing of quality: this is for
loading only. `--frames` sets the frame count in the config, since decoding 25 frames takes minutes on a CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

from benchmarks.entry import run_main
from benchmarks.loopback_hub import LoopbackHub, Repository, serving
from benchmarks.results import write_section
from model.catalog import SIDECAR
from model.checkpoint import save
from model.encoders import build_conditioners
from model.presets import preset
from model.tasks import task
from model.testing import save_single_file
from model.unet import build_unet
from model.vae import build_vae

HERE: Final = Path(__file__).parent
BEGIN, END = "<!-- published_layouts begin -->", "<!-- published_layouts end -->"
STILL: Final = HERE.parent / "docs" / "assets" / "still.jpg"
NETWORKS: Final = ("unet", "vae", "image_encoder")
LAYOUTS: Final = ("plain", "fp16", "sharded", "links", "hub", "plain-25", "single")
STARTS: Final = ("first", "second")
HUB_ID: Final = "random/svd-xt"
REQUEST: Final = ("--steps", "2", "--min-guidance", "1", "--max-guidance", "1")
GENERATE: Final = """
import json, sys, time
from pathlib import Path
from model.sources.layout import HASHED
from serving.engine import local

noted, loader = {}, local.load_model

def peak_gib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20

def load_model(entry, settings, **options):
    noted["found_at"] = time.time()
    model = loader(entry, settings, **options)
    noted["loaded_at"], noted["version"] = time.time(), entry.version  # ready is when that is known, too
    noted["hashed"] = HASHED.bytes
    noted["ready_at"], noted["ready_cpu_s"], noted["ready_peak_gib"] = time.time(), time.process_time(), peak_gib()
    if sys.argv[2] == "ready":
        raise SystemExit
    return model

local.load_model = load_model
from cli.main import app
try:
    app(sys.argv[3:])
finally:
    Path(sys.argv[1]).write_text(json.dumps(noted | {"peak_gib": peak_gib()}))
"""
"""`stillmotion generate` itself, with its loader observed: ready is when the model is loaded on its device, and its
version known."""


def write(folder: Path, size: str, frames: int) -> None:
    """Write every layout below `folder`."""
    plain, chosen, kind = folder / "plain", replace(preset(size), num_frames=frames), task("image-to-video")
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
    as_hub_cache(folder / "fp16", snapshot_of(folder))
    linked(plain, folder / "plain-25")
    config = folder / "plain-25" / "unet" / "config.json"
    text = json.dumps(json.loads(config.read_text()) | {"num_frames": 25}, indent=2)
    config.unlink()  # the name alone: the others' file stays as it is
    config.write_text(text)
    save_single_file(plain, folder / "single" / "svd_xt.safetensors", chosen)


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


def snapshot_of(folder: Path) -> Path:
    """Where the layout `links` lies."""
    return folder / "links" / "models--random--svd-xt" / "snapshots" / ("0" * 40)


def as_hub_cache(source: Path, snapshot: Path) -> None:
    """A snapshot of links to blobs that are named by their hash."""
    repository = snapshot.parent.parent
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for file in source.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            blob = repository / "blobs" / (digest if file.suffix == ".safetensors" else digest[:40])
            if not blob.exists():
                os.link(file, blob)
            link = snapshot / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))


def source_of(folder: Path, layout: str) -> str:
    """What a user would name."""
    if layout == "hub":
        return HUB_ID
    if layout == "links":
        return str(snapshot_of(folder))
    return str(folder / "single" / "svd_xt.safetensors" if layout == "single" else folder / layout)


def start(folder: Path, layout: str, attempt: str, endpoint: str, side: int, until: str) -> dict[str, Any]:
    """One generation in a process of its own, with caches that are the layout's own; `until` ready, or the video."""
    caches = folder / "caches" / layout
    if attempt == "first":
        shutil.rmtree(caches, ignore_errors=True)
    for weights in (folder / ("fp16" if layout == "hub" else layout), caches):
        into_page_cache(weights)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "STILLMOTION_"))}
    environment = clean | {
        "STILLMOTION_CACHE": str(caches / "own"),
        "HF_HOME": str(caches / "hf"),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        noted, out = Path(scratch, "noted.json"), Path(scratch, "clip.mp4")
        arguments = ["generate", str(STILL), "--model", source_of(folder, layout), "--seed", "7", *REQUEST]
        arguments += ["--width", str(side), "--height", str(side)]
        command = [sys.executable, "-c", GENERATE, str(noted), until, *arguments, "-o", str(out), "--json"]
        load, began = os.getloadavg()[0], time.time()
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        ended = time.time()
        figures = json.loads(noted.read_text())
        answer = json.loads(done.stdout) if until == "video" else {"num_frames": 0, "frames_sha256": ""}
    return {
        "layout": layout,
        "start": attempt,
        "frames": answer["num_frames"],
        "side": side,
        "frames_sha256": answer["frames_sha256"],
        "version": figures["version"],
        "found_s": figures["found_at"] - began,
        "ready_s": figures["ready_at"] - began,
        "ready_cpu_s": figures["ready_cpu_s"],
        "total_s": ended - began,
        "ready_peak_gib": figures["ready_peak_gib"],
        "peak_gib": figures["peak_gib"],
        "hashed": figures["hashed"],
        "load": load,
    }


def into_page_cache(folder: Path) -> None:
    """Read every weight file once."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def measure(
    folder: Path, layouts: Sequence[str], starts: Sequence[str], side: int, store: Path, until: str
) -> list[dict[str, Any]]:
    """Every row that `store` does not hold yet; each is written as soon as it is known."""
    rows: list[dict[str, Any]] = json.loads(store.read_text()) if store.exists() else []
    with ExitStack() as stack:
        hub = stack.enter_context(serving(LoopbackHub({HUB_ID: Repository(folder / "fp16")})))
        for attempt in starts:
            for layout in layouts:
                if any((row["layout"], row["start"], row["side"]) == (layout, attempt, side) for row in rows):
                    continue
                rows.append(start(folder, layout, attempt, hub.url, side, until))
                store.write_text(json.dumps(rows, indent=1))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def is_equal(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool | None:
    """Whether a row's frames are those of the plain folder for the same request; None where that was not run."""
    for other in rows if row["frames"] else ():
        is_plain = other["layout"] in ("plain", "plain-25") and other["start"] == "first"
        if is_plain and (other["frames"], other["side"]) == (row["frames"], row["side"]):
            return bool(row["frames_sha256"] == other["frames_sha256"])
    return None


def section(rows: Sequence[dict[str, Any]]) -> str:
    """The section of RESULTS.md."""
    lines = [
        "## Published layouts at full size on two CPU cores",
        "",
        "`python -m benchmarks.published_layouts write FOLDER`, then `measure FOLDER --write`",
        "",
        "Random svd-xt in float16 (4.5 GB), loaded as float32 (8.4 GiB) as `auto` has it on a CPU. Each row is one",
        "`stillmotion generate` of 2 steps without guidance, in a process of its own, its files in the page cache.",
        "Ready: from the process's start, Python's imports included, to the model loaded; `of a core` are the seconds",
        "of it that the process had a core, since other work shared the two (load: the machine's load average as the",
        "row began). The hub's first start fetches everything through the loopback interface; the single file's adapts",
        "it into the cache. Equal: the frames are those of the plain folder. Frame counts are by the config, but for a",
        "single file: its weights tell none, so it has 25. Frames `none`: the row ended once the model was ready and",
        "its version, hashed meanwhile at a first start, known (`--until ready`); a load near 1 says that nothing else",
        "ran, and those are the rows to hold against the target of 20 s for the fp16 folder.",
        "",
        "| layout | start | to the entry, s | ready, s | of a core, s | peak to ready, GiB | peak, GiB | hashed, GB "
        "| frames | equal | all, s | load |",
        "|" + " --- |" * 12,
    ]
    words = {True: "yes", False: "NO", None: "-"}
    for row in sorted(rows, key=lambda row: (LAYOUTS.index(row["layout"]), STARTS.index(row["start"]))):
        size = f"{row['frames']}x{row['side']}x{row['side']}" if row["frames"] else "none"
        figures = [f"{row[name]:.1f}" for name in ("found_s", "ready_s", "ready_cpu_s", "ready_peak_gib", "peak_gib")]
        figures += [f"{row['hashed'] / 1e9:.2f}", size, words[is_equal(row, rows)]]
        cells = (row["layout"], row["start"], *figures, f"{row['total_s']:.0f}", f"{row['load']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    run = {(row["layout"], row["start"]) for row in rows}
    missing = [f"{layout} ({start})" for layout in LAYOUTS for start in STARTS if (layout, start) not in run]
    lines += ["", f"Not run yet: {', '.join(missing)}."] if missing else []
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "measure", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="svd-xt")
    parser.add_argument("--frames", type=int, default=4, help="write: the frame count that configs name [4]")
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--starts", nargs="*", choices=STARTS, default=list(STARTS))
    parser.add_argument("--side", type=int, default=256, help="measure: width and height of the video [256]")
    parser.add_argument("--until", choices=["ready", "video"], default="video", help="measure: what a row ends with")
    parser.add_argument("--json", type=Path, help="rows measured so far; those are not run again [FOLDER/figures.json]")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.what == "write":
        write(options.folder, options.size, options.frames)
        return
    store = options.json or options.folder / "figures.json"
    if options.what == "measure":
        rows = measure(options.folder, options.layouts, options.starts, options.side, store, options.until)
    else:
        rows = json.loads(store.read_text())
    text = section(rows)
    print(text)
    if options.write:
        write_section(BEGIN, END, f"\n{text}")


if __name__ == "__main__":
    run_main(main)
