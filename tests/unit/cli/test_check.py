"""`stillmotion check`: what is found, what is missing, how it would run; exit code 1 where it cannot be served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from model.checkpoint import Checkpoint
from model.memory.plan import MemoryNeeds, needs_of
from model.sources.source import find
from serving.engine import report
from tests.unit.model.sources.support import as_variant, published, weights_of


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STILLMOTION_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = published(tmp_path_factory.mktemp("published") / "plain")
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: community-licence\n---\n")
    return folder


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check", *arguments, "--device", "cpu"])


@pytest.mark.slow
def test_a_shipped_checkpoint_fits_on_one_screen() -> None:
    result = check("mini-image-to-video")
    assert result.exit_code == 0, result.output
    for part in ("image-to-video", "nothing is missing", "here on cpu in float32", "plans for a GPU", "8 GiB"):
        assert part in result.stdout
    assert result.stdout.splitlines()[-1] == "serve it: stillmotion serve --model mini-image-to-video"
    assert len(result.stdout.splitlines()) <= 24


@pytest.mark.slow
def test_a_published_folder_says_its_layout_licence_and_memory(plain: Path, tmp_path: Path) -> None:
    folder = as_variant(plain, tmp_path / "fp16")
    result = check(str(folder), "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["licence"], facts["task"], facts["num_frames"]) == ("community-licence", "image-to-video", [6])
    assert facts["problems"] == []
    assert {one["name"]: (one["variant"], one["dtypes"]) for one in facts["components"]} == {
        name: ("fp16", ["F16"]) for name in ("unet", "vae", "image_encoder")
    }
    assert facts["here"]["dtype"] == "float32" and facts["here"]["needed_bytes"] > 0
    assert [one["gib"] for one in facts["plans"]] == [8, 12, 16, 24]
    assert facts["command"] == f"stillmotion serve --model {folder}"


def test_what_it_needs_is_counted_once_for_all_cards(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[object] = []

    def counting(checkpoint: Checkpoint, *rest: object, **options: bool) -> MemoryNeeds:
        counted.append(rest)
        return needs_of(checkpoint, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(report, "needs_of", counting)
    assert len(report.card_plans(find(str(plain)))) == len(report.CARDS_GIB) > 1 == len(counted)


def test_everything_that_is_broken_is_named(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "broken")
    shutil.rmtree(folder / "image_encoder")
    file = weights_of(folder, "unet")
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 10)
    result = check(str(folder))
    assert result.exit_code == 1
    assert "cannot be served" in result.stdout
    assert "was cut short" in result.stdout and "lacks the folder image_encoder/" in result.stdout
    as_json = check(str(folder), "--json")
    assert as_json.exit_code == 1
    facts = json.loads(as_json.stdout)
    assert len(facts["problems"]) == 2 and [one["name"] for one in facts["components"]] == ["vae"]


def test_another_architecture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanImageToVideoPipeline"}')
    result = check(str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Wan, a video transformer" in result.stderr and result.stderr.count("\n") == 1
