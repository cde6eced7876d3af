"""`stillmotion models`: a hub cache of tens of gigabytes is listed at once, since its blobs are named by their hash."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from cli.main import app
from model.sources.layout import HASHED
from tests.unit.model.sources.support import as_hub_cache, published

GB = 10**9
SIZES = {
    "unet/diffusion_pytorch_model.safetensors": 6.1,
    "unet/diffusion_pytorch_model.fp16.safetensors": 3.05,
    "vae/diffusion_pytorch_model.safetensors": 0.39,
    "vae/diffusion_pytorch_model.fp16.safetensors": 0.2,
    "image_encoder/model.safetensors": 2.53,
    "image_encoder/model.fp16.safetensors": 1.26,
    "svd_xt.safetensors": 9.56,
    "svd_xt_image_decoder.safetensors": 9.56,
}
"""Weight files of svd-xt's repository, in GB."""


def test_a_whole_snapshot_of_svd_xt_takes_under_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = published(tmp_path / "plain")
    for file in source.rglob("*.safetensors"):
        file.unlink()
    snapshot = as_hub_cache(source, tmp_path / "hub", "org/svd-xt")
    shutil.rmtree(source)
    blobs = snapshot.parent.parent / "blobs"
    for number, (name, size) in enumerate(SIZES.items()):
        blob = blobs / f"{number:064x}"
        with blob.open("wb") as stream:
            stream.truncate(int(size * GB))  # sparse: takes no room
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    assert sum(SIZES.values()) > 28
    listings = []
    for _ in range(2):
        began, read = time.process_time(), HASHED.bytes
        result = CliRunner().invoke(app, ["models", "--json"])
        took, hashed = time.process_time() - began, HASHED.bytes - read
        assert result.exit_code == 0, result.output
        listings.append([(one["source"], one["version"]) for one in json.loads(result.stdout)])
    assert took < 1 and hashed == 0, f"the second call took {took:.2f} s and hashed {hashed} bytes"
    assert listings[0] == listings[1]
    assert any(name == f"org/svd-xt@{snapshot.name}" for name, _ in listings[0])
