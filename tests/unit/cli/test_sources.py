"""Commands that name a model take every kind of source: the same weights give the same video, and the same copy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from model.errors import InvalidRequest
from model.presets import preset
from model.sources.source import find_all
from model.testing import save_single_file
from tests.unit.model.sources.support import as_hub_cache, as_shards, as_single_file, as_variant, published

TINY = ("--width", "64", "--height", "64", "--steps", "1", "--max-guidance", "1", "--seed", "3")


@dataclass(frozen=True)
class Sources:
    """What a user may name, by kind, and a picture."""

    named: dict[str, str]
    still: Path
    hub: Path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    plain = published(folder / "plain")
    variant = as_variant(plain, folder / "fp16")
    snapshot = as_hub_cache(variant, folder / "hub", "org/svd")
    save_single_file(plain, folder / "svd_xt.safetensors", preset("tiny"))
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(folder / "still.png")
    named = {
        "folder": str(plain),
        "fp16": str(variant),
        "sharded": str(as_shards(plain, folder / "sharded")),
        "snapshot": str(snapshot),
        "hub id": f"org/svd@{snapshot.name}",  # a commit that is complete: the hub is not asked
        "Stability's file": str(folder / "svd_xt.safetensors"),
        "diffusers' file": str(as_single_file(plain, folder / "mine.safetensors")),
        "named": f"mine={variant}",
    }
    return Sources(named, folder / "still.png", folder / "hub")


KINDS = (
    *("hub id", "Stability's file", "diffusers' file"),
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fp16", "sharded", "snapshot", "named")),
)
"""tests/unit/model/sources/test_layout.py compares the weights of every layout by default."""


@pytest.fixture(autouse=True)
def caches(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(sources.hub))


def run(*arguments: str) -> dict[str, str]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def generated(sources: Sources, kind: str, out: Path) -> dict[str, str]:
    return run("generate", str(sources.still), "--model", sources.named[kind], "-o", str(out), *TINY)


@pytest.fixture(scope="module")
def plain_frames(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("plain")
        patch.setenv("STILLMOTION_CACHE", str(folder / "cache"))
        return generated(sources, "folder", folder / "clip.mp4")["frames_sha256"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_generates_the_folder_s_frames(
    sources: Sources, kind: str, plain_frames: str, tmp_path: Path
) -> None:
    answer = generated(sources, kind, tmp_path / "clip.mp4")
    assert answer["frames_sha256"] == plain_frames
    name = {
        "snapshot": "svd",
        "hub id": "svd",
        "Stability's file": "svd_xt",
        "diffusers' file": "mine",
        "named": "mine",
    }
    assert answer["model"] == name.get(kind, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_is_copied_into_a_model_repository(sources: Sources, kind: str, tmp_path: Path) -> None:
    answer = run("export", sources.named[kind], "--out", str(tmp_path / "repository"), "--backend", "torch")
    version = Path(answer["model"]) / "1"
    files = [file for file in version.rglob("*") if file.is_file()]
    assert not any(file.is_symlink() for file in files)
    assert len([file for file in files if file.suffix == ".safetensors"]) == (7 if kind == "sharded" else 3)


def test_two_sources_of_one_name_are_refused(sources: Sources) -> None:
    again = f"fp16={sources.named['folder']}"
    with pytest.raises(InvalidRequest, match="are both called 'fp16': name one of them, with NAME=SOURCE"):
        find_all([sources.named["fp16"], again])
    assert [entry.name for entry in find_all([sources.named["fp16"], sources.named["folder"]])] == ["fp16", "plain"]


def test_commands_that_need_something_else_say_so(sources: Sources) -> None:
    for arguments, said in (
        (("models", "pull", sources.named["folder"]), "is no hub id: name it as ORG/NAME"),
        (("generate", str(sources.still), "--model", "no-such-model"), "no model is called 'no-such-model'"),
        (("check", str(sources.still)), "is no checkpoint: name a folder, or a .safetensors file"),
    ):
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code in (1, 2) and said in result.stderr
        assert result.stderr.count("\n") == 1
