"""An exported folder's manifest: what it refuses, and the catalog's view of such a folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from model.errors import CheckpointError
from model.export_manifest import (
    MANIFEST,
    EngineBuild,
    ExportManifest,
    check_engine,
    file_hash,
    read_manifest,
    served_version,
)

BUILT = EngineBuild("tensorrt_rtx", "1.7.1", ("8.9", "12.0"), None, stripped=True)
PLAIN = ExportManifest("mini", "0123", "image-to-video", "onnx", "float32", 64, 64, True, {}, {"torch": "2.13"}, ())


def test_it_reads_back_as_written(tmp_path: Path) -> None:
    manifest = dataclasses.replace(PLAIN, built=BUILT, parity=({"what": "unet", "difference": 1e-6},))
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unet.onnx").write_bytes(b"weights")
    manifest = dataclasses.replace(PLAIN, files={"unet.onnx": file_hash(tmp_path / "unet.onnx")})
    manifest.check_files(tmp_path)
    (tmp_path / "unet.onnx").write_bytes(b"Weights")
    with pytest.raises(CheckpointError, match="not the file that was exported"):
        manifest.check_files(tmp_path)
    (tmp_path / "unet.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"lacks unet\.onnx"):
        manifest.check_files(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 1}'])
def test_a_broken_manifest_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"export\.json is missing or not complete"):
        read_manifest(tmp_path)


def test_another_format_is_told(tmp_path: Path) -> None:
    PLAIN.write(tmp_path)
    told = json.loads((tmp_path / MANIFEST).read_text()) | {"format": 99}
    (tmp_path / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="has format 99, not 1"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("builder", "version", "capability", "told"),
    [
        ("tensorrt", "1.7.1", "8.9", "is tensorrt_rtx's"),
        ("tensorrt_rtx", "1.8.0", "8.9", "compiled by tensorrt_rtx 1.7.1, and 1.8.0 is installed"),
        ("tensorrt_rtx", "1.7.1", "9.0", "for compute capability 8.9, 12.0, and this GPU has 9.0"),
        ("tensorrt_rtx", "1.7.1", None, "there is none here"),
    ],
)
def test_an_engine_of_another_machine_is_refused(builder: str, version: str, capability: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told) as caught:
        check_engine(BUILT, builder, version, capability)
    assert caught.value.code == "wrong_engine"


def test_an_engine_of_this_machine_is_taken() -> None:
    check_engine(BUILT, "tensorrt_rtx", "1.7.1", "8.9")
    check_engine(dataclasses.replace(BUILT, capabilities=()), "tensorrt_rtx", "1.7.1", "12.1")


def test_a_plain_folder_serves_no_version(tmp_path: Path) -> None:
    assert served_version(tmp_path) is None
