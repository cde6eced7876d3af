"""Checkpoints of a hub, with the real huggingface_hub client against a loopback hub that speaks the real API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loopback_hub import LoopbackHub, Repository, serving
from model.sources.hub import HubId, parse_hub_id, wanted_files
from model.sources.source import find
from tests.unit.model.sources.support import as_single_file, as_variant, published, weights_of

FIND = """
import json, sys
from model.errors import StillmotionError
from model.sources.source import find
from model.sources.layout import HASHED
for source in sys.argv[1:]:
    try:
        entry = find(source, "float16")
        answer = {"name": entry.name, "version": entry.version, "path": str(entry.path), "hashed": HASHED.bytes}
        print(json.dumps(answer))
    except StillmotionError as error:
        print(json.dumps({"code": error.code, "message": error.message}))
"""
"""What every command does with the source that a user names, in a process that has the environment's hub."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "plain")


@pytest.fixture(scope="module")
def hub(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    root = tmp_path_factory.mktemp("hub")
    both = as_variant(plain, root / "both")
    for name in ("unet", "vae", "image_encoder"):  # the hub has either precision, single files and pickles beside
        shutil.copy(weights_of(plain, name), both / name / weights_of(plain, name).name)
    as_single_file(plain, both / "svd_xt.safetensors")
    (both / "README.md").write_text("---\nlicense: other\n---\n")
    (both / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    single = root / "single"
    single.mkdir()
    as_single_file(plain, single / "svd_finetune.safetensors")
    pickled = Path(shutil.copytree(plain, root / "pickled"))
    weights_of(pickled, "unet").rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    other = root / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    names = {"both": both, "single": single, "pickled": pickled, "other": other}
    repositories = {f"org/{name}": Repository(folder) for name, folder in names.items()}
    repositories["org/gated"] = Repository(both, gated=True)
    with serving(LoopbackHub(repositories)) as running:
        yield running


def found(root: Path, cache: Path, endpoint: str, *sources: str, **more: str) -> list[dict[str, Any]]:
    """What `find` answers to each source, in one process of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache / "hf"),
        "STILLMOTION_CACHE": str(cache / "ours"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FIND, *sources],
        cwd=root,
        env=clean | environment | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ids_are_told_from_other_texts() -> None:
    assert parse_hub_id("stabilityai/stable-video-diffusion-img2vid-xt") == HubId(
        "stabilityai/stable-video-diffusion-img2vid-xt"
    )
    assert parse_hub_id("org/name@refs/pr/1") == HubId("org/name", "refs/pr/1")
    assert parse_hub_id("org/name/svd_xt.safetensors@main") == HubId("org/name", "main", "svd_xt.safetensors")
    assert parse_hub_id("org/name") is not None and HubId("org/name").name == "name"
    assert all(parse_hub_id(text) is None for text in ("mini-image-to-video", "/org/name", "../models/name", ""))


def test_only_what_is_read_is_fetched() -> None:
    weights = [f"unet/diffusion_pytorch_model{variant}.safetensors" for variant in ("", ".fp16")]
    names = ["model_index.json", "README.md", "svd_xt.safetensors", "unet/config.json", *weights, "unet/old.bin",
             "vae/diffusion_pytorch_model.safetensors", "samples/one.json", "out.mp4"]  # fmt: skip
    half = set(wanted_files(names, "float16"))
    assert half >= {"model_index.json", "README.md", "unet/config.json", weights[1]}
    assert half.isdisjoint({"svd_xt.safetensors", weights[0], "unet/old.bin", "samples/one.json"})
    assert weights[0] in wanted_files(names, "float32")
    assert "vae/diffusion_pytorch_model.safetensors" in half  # which has no variant


@pytest.mark.slow
def test_an_id_is_fetched_once_and_is_the_folder(
    root: Path, tmp_path: Path, hub: LoopbackHub, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.requests.clear()
    weight = weights_of(plain, "unet").stat().st_size
    hub.break_after = weight // 2  # the connection breaks half way: the client goes on from there
    (first,) = found(root, tmp_path, hub.url, "org/both")
    fetched = hub.fetched()
    assert {name for name in fetched if name.endswith((".safetensors", ".bin"))} == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "image_encoder/model.fp16.safetensors",
    }
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "check"))
    assert first["version"] == find(str(hub.repositories["org/both"].folder), "float16").version
    assert first["name"] == "both" and first["hashed"] < 20_000  # configs; the blobs are named by their hash

    hub.requests.clear()
    commit = hub.repositories["org/both"].commit
    second, pinned, named = found(root, tmp_path, hub.url, "org/both", f"org/both@{commit}", "mine=org/both@main")
    assert not {name for name in hub.fetched() if name.endswith(".safetensors")}
    assert second["version"] == pinned["version"] == first["version"] and named["name"] == "mine"

    offline, nothing = found(root, tmp_path, hub.url, "org/both", "org/single", HF_HUB_OFFLINE="1")
    assert offline["version"] == first["version"]
    assert "HF_HUB_OFFLINE is set" in nothing["message"] and "models pull org/single" in nothing["message"]
    gone, nowhere = found(root, tmp_path, "http://127.0.0.1:9", "org/both", "org/single")
    assert gone["version"] == first["version"]
    assert nowhere["code"] == "hub_unreachable" and "cannot be reached" in nowhere["message"]

    next(Path(first["path"]).glob("unet/*.safetensors")).unlink()
    (half,) = found(root, tmp_path, hub.url, "org/both", HF_HUB_OFFLINE="1")
    assert half["code"] == "incomplete_download" and "models pull org/both" in half["message"]


def test_every_refusal_says_what_to_do(root: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    sources = (
        "org/gated",
        "org/missing",
        "org/both@no-such-branch",
        "org/pickled",
        "org/other",
        "org/both/no.safetensors",
    )
    hub.requests.clear()
    gated, missing, revision, pickled, other, file = found(root, tmp_path, hub.url, *sources)
    assert gated["code"] == "gated" and "accept its terms" in gated["message"] and "HF_TOKEN" in gated["message"]
    assert missing["code"] == "model_not_found" and "check the name" in missing["message"]
    assert revision["code"] == "revision_not_found" and "'no-such-branch'" in revision["message"]
    assert "unet/diffusion_pytorch_model.bin is a Python pickle" in pickled["message"]
    assert other["code"] == "wrong_architecture" and "Stable Diffusion (1.x or 2.x)" in other["message"]
    assert "has no file no.safetensors" in file["message"]
    assert not {name for name in hub.fetched() if name.endswith((".safetensors", ".bin"))}  # before anything large
    (opened,) = found(root, tmp_path, hub.url, "org/gated", HF_TOKEN=hub.token)
    assert opened["name"] == "gated"


@pytest.mark.slow
def test_a_repository_of_one_file_is_adapted_once(root: Path, tmp_path: Path, hub: LoopbackHub, plain: Path) -> None:
    first, named = found(root, tmp_path, hub.url, "org/single", "org/both/svd_xt.safetensors")
    assert (first["name"], named["name"]) == ("svd_finetune", "svd_xt")
    assert Path(first["path"]).is_relative_to(tmp_path / "ours" / "adapted")
    assert first["hashed"] == 0  # the blob's name is its hash, and the version
    before = Path(first["path"]).stat().st_mtime_ns
    (second,) = found(root, tmp_path, hub.url, "org/single", HF_HUB_OFFLINE="1")
    assert (second["version"], Path(second["path"]).stat().st_mtime_ns) == (first["version"], before)


@pytest.mark.slow
def test_models_lists_what_is_pulled(root: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = clean | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "STILLMOTION_CACHE": str(tmp_path / "ours"),
    }  # fmt: skip

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", "models", *arguments]
        return subprocess.run(command, cwd=root, env=environment | more, capture_output=True, text=True, check=False)

    pulled = run("pull", "org/both", "--dtype", "float16")
    assert pulled.returncode == 0, pulled.stderr
    assert "stillmotion serve --model org/both" in pulled.stdout
    listed = json.loads(run("--json", HF_HUB_OFFLINE="1").stdout)
    assert [entry["name"] for entry in listed if entry["source"] == "org/both"] == ["both"]
    assert {entry["name"] for entry in listed} >= {"mini-image-to-video"}
    refused = run("pull", "org/missing")
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
