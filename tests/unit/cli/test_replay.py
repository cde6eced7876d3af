"""`stillmotion replay` for real, on a tiny random checkpoint: the same video again, from the mp4 or its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from model.presets import preset
from model.tasks import TASKS
from model.testing import build_random
from serving.provenance import video_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("replay")
    build_random(made / "tiny", preset("tiny"), TASKS["image-to-video"])
    Image.effect_mandelbrot((90, 60), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(made / "still.png")
    common = ["--model", str(made / "tiny"), "--steps", "2", "--seed", "7"]
    result = CliRunner().invoke(app, ["generate", str(made / "still.png"), "-o", str(made / "clip.mp4"), *common])
    assert result.exit_code == 0, result.stderr
    return made


def replay(*arguments: object) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["replay", *map(str, arguments), "--json"])
    assert result.stdout, result.stderr
    return result.exit_code, json.loads(result.stdout)


def test_the_video_is_made_again_from_itself(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.mp4"
    code, answer = replay(folder / "clip.mp4", "--model", folder / "tiny", "-o", out)
    assert (code, answer["identical"], answer["differences"]) == (0, True, [])
    first, second = ((folder / "clip.mp4").read_bytes(), out.read_bytes())
    assert video_manifest.read_manifest(first) == video_manifest.read_manifest(second)
    assert first == second


@pytest.mark.slow
def test_a_manifest_alone_is_enough_and_a_change_shows(folder: Path, tmp_path: Path) -> None:
    manifest = video_manifest.read_manifest((folder / "clip.mp4").read_bytes())
    assert manifest is not None
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    code, answer = replay(tmp_path / "manifest.json", "--model", folder / "tiny")
    assert (code, answer["identical"]) == (0, True)

    manifest["params"]["seed"] = 8
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    code, answer = replay(tmp_path / "manifest.json", "--model", folder / "tiny")
    assert (code, answer["identical"]) == (1, False)

    changed = video_manifest.attach_manifest((folder / "clip.mp4").read_bytes(), manifest)
    (tmp_path / "changed.mp4").write_bytes(changed)
    code, answer = replay(tmp_path / "changed.mp4", "--model", folder / "tiny")
    assert (code, answer["identical"]) == (1, False)
    assert answer["psnr_db"] < 60


@pytest.mark.parametrize("spoil", ["version", "params", "pictures"])
def test_what_cannot_be_replayed_is_told_in_a_line(folder: Path, tmp_path: Path, spoil: str) -> None:
    manifest = video_manifest.read_manifest((folder / "clip.mp4").read_bytes())
    assert manifest is not None
    manifest["model_version" if spoil == "version" else spoil] = "other"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(app, ["replay", str(tmp_path / "manifest.json"), "--model", str(folder / "tiny")])
    assert result.exit_code == 2
    assert (result.stderr.count("\n"), result.stderr[:6]) == (1, "error:")
