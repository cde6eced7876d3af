"""A version costs no reading: blobs are named by their hash, other files are hashed once, changes are noticed."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from model.catalog import zoo
from model.identity import content_sha256
from model.sources.layout import HASHED
from model.sources.source import find
from tests.unit.model.sources.support import as_hub_cache, as_variant, published, weights_of


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "plain")


def hashed(path: Path) -> tuple[str, int]:
    before = HASHED.bytes
    return find(str(path)).version, HASHED.bytes - before


def test_a_second_start_reads_nothing(plain: Path) -> None:
    first, read = hashed(plain)
    assert read >= sum(weights_of(plain, name).stat().st_size for name in ("unet", "vae", "image_encoder"))
    assert hashed(plain) == (first, 0)


def test_a_changed_file_is_noticed(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "changing")
    first, _ = hashed(folder)
    file = weights_of(folder, "unet")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 1))
    second, read = hashed(folder)
    assert second != first
    assert file.stat().st_size <= read < file.stat().st_size + 10_000  # the others are remembered


def test_a_hub_caches_weights_are_not_read_at_all(plain: Path, tmp_path: Path) -> None:
    snapshot = as_hub_cache(plain, tmp_path / "hub")
    version, read = hashed(snapshot)
    assert read < 10_000  # configs
    assert version == find(str(plain)).version
    assert find(str(snapshot)).name == "a-finetune"
    weight = weights_of(snapshot, "unet")
    assert content_sha256(weight) == hashlib.sha256(weight.read_bytes()).hexdigest()


def test_a_cache_that_cannot_be_written_costs_a_reading(
    plain: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder should be")
    first, read = hashed(plain)
    assert hashed(plain) == (first, read)


def test_the_variant_is_part_of_the_identity(plain: Path, tmp_path: Path) -> None:
    assert find(str(as_variant(plain, tmp_path / "variant"))).version != find(str(plain)).version


def test_shipped_versions_are_those_of_the_bytes() -> None:
    """The rule that manifests and LoRAs rely on, written out again: names and contents in order."""
    for entry in zoo():
        digest = hashlib.sha256()
        for file in sorted(entry.path.rglob("*")):
            relative = file.relative_to(entry.path)
            if file.suffix in {".json", ".safetensors"} and relative.parts[0] != "loras":
                if file.name in {"metrics.json", "profile.json", "options.json"}:
                    continue
                digest.update(str(relative).encode() + file.read_bytes())
        assert entry.version == digest.hexdigest()[:12], entry.name
    assert zoo()
