"""A version that is computed beside the loading: the same digest, each byte read once, and nobody waits before."""

from __future__ import annotations

import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from model import catalog, identity
from model.catalog import ModelEntry
from model.errors import CheckpointError
from model.identity import PendingVersion, content_sha256s
from model.sources.layout import HASHED
from model.sources.source import find
from serving.engine.loaded_model import load_model
from serving.engine.settings import EngineSettings
from tests.unit.model.sources.support import published


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("published") / "plain")


CONFIGS = ("scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json")


class Gate:
    """Holds hashing back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = Event()
        through = identity.read_into

        def read_into(digest: Any, file: Path) -> None:
            assert self.open.wait(60)
            through(digest, file)

        monkeypatch.setattr(identity, "read_into", read_into)
        monkeypatch.setattr(catalog, "SOON", 0)


def by_the_rule(folder: Path) -> str:
    """A published folder's version, written out again."""
    digest = hashlib.sha256()
    names = list(CONFIGS)
    for network, weights in (
        ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("image_encoder", "model"),
    ):  # fmt: skip
        names += [f"{network}/config.json", f"{network}/{weights}.safetensors"]
    for name in names:
        digest.update(f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def test_a_model_loads_while_its_version_is_computed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, before = Gate(monkeypatch), HASHED.bytes
    entry = find(f"mine={folder}")
    assert isinstance(entry.identity, PendingVersion)
    model = load_model(entry, EngineSettings(device="cpu"), one_request=True)
    assert HASHED.bytes == before  # not a byte, and it is loaded
    gate.open.set()
    assert model.entry.version == by_the_rule(folder)
    read = {file for network in ("unet", "vae", "image_encoder") for file in (folder / network).iterdir()}
    read |= {folder / name for name in CONFIGS}
    assert HASHED.bytes - before == sum(file.stat().st_size for file in read)
    assert isinstance(find(str(folder)).identity, str)  # remembered: nothing is pending at the second start
    assert find(str(folder)).version == entry.version


def test_a_small_folder_s_version_is_there_at_once(folder: Path) -> None:
    assert find(str(folder)).identity == by_the_rule(folder)


def test_a_pending_version_is_its_value_wherever_it_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find(str(folder))
    monkeypatch.setenv("STILLMOTION_CACHE", str(folder.parent / "another cache"))
    gate = Gate(monkeypatch)
    pending = find(str(folder))
    renamed = replace(pending, name="renamed")  # waits for nothing
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(pickle.dumps, pending)
        gate.open.set()
        arrived: ModelEntry = pickle.loads(sent.result(60))
    assert isinstance(arrived.identity, str)
    assert arrived == pending == expected
    assert renamed.version == f"{pending.identity}" == expected.version
    assert hash(pending.identity) == hash(expected.identity)
    assert pending != replace(expected, identity="0" * 12)


def test_a_file_that_cannot_be_read_is_said_by_whoever_reads_the_version(tmp_path: Path) -> None:
    def compute() -> str:
        return (tmp_path / "gone").read_text()

    with pytest.raises(CheckpointError, match="gone"):
        PendingVersion(compute).result()


def test_several_files_are_read_once_each(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(5)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (number * 1000))
    before = HASHED.bytes
    listed = [*files, files[3]]
    assert content_sha256s(listed) == [hashlib.sha256(file.read_bytes()).hexdigest() for file in listed]
    assert HASHED.bytes - before == 10_000
    assert content_sha256s(files) == content_sha256s(files)
    assert HASHED.bytes - before == 10_000
    with pytest.raises(FileNotFoundError):
        content_sha256s([*files, tmp_path / "none"])
