"""Memory that is reserved for weights: of the size they have, taken once, its pages there before they are written."""

from __future__ import annotations

import platform
import resource
import sys
import threading
from pathlib import Path

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel

from model import prefault
from model.catalog import ModelEntry, describe
from model.checkpoint import load
from model.prefault import converted_bytes, discard, prefault_weights, take
from model.sources.layout import component_files
from model.weights import load_network
from tests.unit.model.sources.support import published

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is populated on Linux")


@pytest.fixture(scope="module")
def entry_in_half(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return describe(published(tmp_path_factory.mktemp("half"), torch.float16))


@pytest.fixture
def half(entry_in_half: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """A tiny checkpoint in float16, for which memory is reserved all the same."""
    monkeypatch.setattr(prefault, "LEAST", 1)
    return entry_in_half


def populated() -> None:
    for thread in threading.enumerate():
        if thread.name == "stillmotion-prefault":
            thread.join(60)


def test_weights_are_loaded_into_it_and_are_what_they_were(half: ModelEntry) -> None:
    files = component_files(half.path / "unet", half.precision)
    plain = load_network(UNetSpatioTemporalConditionModel, files, "cpu", torch.float32, "fused").state_dict()
    assert prefault_weights(half, "cpu") > 0
    memory = prefault._reserved[half.path / "unet"]
    there = torch.frombuffer(memory, dtype=torch.uint8)
    first, last = there.data_ptr(), there.data_ptr() + there.numel()
    network = load_network(UNetSpatioTemporalConditionModel, files, "cpu", torch.float32, "fused")
    assert all(first <= weight.data_ptr() < last for weight in network.parameters())
    assert all(torch.equal(weight, plain[name]) for name, weight in network.state_dict().items())
    assert take(half.path / "unet", 1) is None, "it is taken once"
    discard(half.path)


@pytest.mark.skipif(
    tuple(map(int, platform.release().split("-")[0].split(".")[:2])) < (5, 14), reason="the kernel cannot populate"
)
def test_pages_are_there_before_they_are_written(half: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 64 * 2**20
    monkeypatch.setattr(prefault, "converted_bytes", lambda entry, network: size if network == "unet" else 0)
    if not prefault_weights(half, "cpu"):
        pytest.skip("memory is scarce here")
    populated()
    memory = take(half.path / "unet", size)
    assert memory is not None
    numbers = torch.frombuffer(memory, dtype=torch.uint8)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    numbers[::4096] = 1
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < size // 4096 // 10


def test_what_is_used_as_it_lies_in_the_file_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefault, "LEAST", 1)
    entry = describe(published(tmp_path, torch.float32))
    assert converted_bytes(entry, "unet") == 0
    assert prefault_weights(entry, "cpu") == 0


def test_nothing_is_reserved_beyond_what_is_free(half: ModelEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefault, "_available_bytes", lambda: 1024)
    assert prefault_weights(half, "cpu") == 0
    assert take(half.path / "unet", 1) is None


def test_what_nobody_took_goes_once_the_checkpoint_is_loaded(half: ModelEntry) -> None:
    assert prefault_weights(half, "cpu") > 0
    load(half)  # in float32, each weight with memory of its own
    assert prefault._reserved == {}


def test_nothing_is_reserved_for_a_gpu_or_where_the_system_refuses(
    half: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefault_weights(half, "cuda") == prefault_weights(half, "auto") == 0  # auto: torch is here to be asked

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(prefault.mmap, "mmap", refuse)
    assert prefault_weights(half, "cpu") == 0


def test_a_network_that_is_larger_than_said_is_not_put_into_it(half: ModelEntry) -> None:
    prefault_weights(half, "cpu")
    assert take(half.path / "unet", 2**40) is None
    discard(half.path)
