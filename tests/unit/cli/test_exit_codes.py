"""What goes wrong ends with one line that says what to do, and the right exit code."""

from __future__ import annotations

import errno
import io
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cli.main import Commands, app
from model.errors import (
    CheckpointError,
    GenerationFailed,
    ImageTooLarge,
    InvalidRequest,
    MissingExtra,
    StillmotionError,
)


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    return path


def run(*arguments: object) -> tuple[int, str]:
    """Exit code, and stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stderr


def failing(error: BaseException) -> tuple[int, str]:
    """A command that raises this."""
    broken = typer.Typer(cls=Commands, pretty_exceptions_enable=False, rich_markup_mode=None)

    @broken.callback()
    def group() -> None:
        """Hold the command."""

    @broken.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(broken, ["fail"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidRequest("fps must be from 1 to 60", param="fps"), 2, "error: fps must be from 1 to 60\n"),
        (ImageTooLarge("too many pixels"), 1, "error: too many pixels\n"),
        (CheckpointError("no model_index.json"), 1, "error: no model_index.json\n"),
        (GenerationFailed("two\n  lines"), 1, "error: two lines\n"),
        (StillmotionError("all else"), 1, "error: all else\n"),
        (MissingExtra("exporting", "export"), 1, None),
        (OSError(errno.ENOSPC, "No space left on device", "x.mp4"), 1, None),
        (PermissionError(errno.EACCES, "Permission denied", "x.mp4"), 1, "error: x.mp4: Permission denied\n"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, None),
    ],
)
def test_errors_raised_on_purpose_are_one_line(error: Exception, code: int, line: str | None) -> None:
    exit_code, stderr = failing(error)
    assert exit_code == code
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert line in (None, stderr)


def test_remedies_are_named() -> None:
    assert "[engine]" in failing(ModuleNotFoundError("no", name="torch.nn"))[1]
    assert "[serve]" in failing(ModuleNotFoundError("no", name="uvicorn"))[1]
    assert "free some space" in failing(OSError(errno.ENOSPC, "No space left on device"))[1]


@pytest.mark.parametrize("bug", [KeyError("x"), ModuleNotFoundError("no", name="typo"), OSError("odd")])
def test_bugs_are_not_hidden(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        failing(bug)


def test_wrong_usage_is_2(still: Path, tmp_path: Path) -> None:
    assert run("nonsense")[0] == 2
    assert run("generate", still, "--nonsense")[0] == 2
    assert run("generate", still, "--seed", "x")[0] == 2
    assert run("generate", still, "--solver", "magic")[0] == 2
    assert run("generate", tmp_path / "nowhere.jpg")[0] == 2
    assert run("generate", still, "-o", tmp_path / "x.avi")[0] == 2
    assert run("generate", still, "-o", tmp_path, "--format", "mp4")[0] == 2
    assert run("train")[0] == 2
    code, stderr = run("train", "nothing", "--data", tmp_path, "--out", tmp_path)
    assert code == 2
    assert "mini-vae" in stderr
    code, stderr = run("train", "mini-vae", "--data", tmp_path, "--out", tmp_path, "--set", "lr")
    assert code == 2
    assert "KEY=VALUE" in stderr
    assert run("train", "mini-vae")[0] == 2
    assert run("serve", "--port", "70000")[0] == 2
    assert run("eval", "x", "--limit", "0")[0] == 2


def test_failure_is_1_and_names_the_remedy(still: Path, tmp_path: Path) -> None:
    code, stderr = run("generate", still, "--model", tmp_path / "nowhere", "-o", tmp_path / "x.mp4")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "shipped:" in stderr
    code, stderr = run("serve", "--model", tmp_path)
    assert (code, stderr.count("\n")) == (1, 1)
    assert "model_index.json" in stderr
    code, stderr = run("train", "mini-vae", "--data", tmp_path, "--out", tmp_path / "runs")
    assert (code, stderr.count("\n")) == (1, 1)
    assert "data starter" in stderr


@pytest.mark.parametrize("kind", ["text", "truncated", "empty", "flat"])
def test_a_bad_picture_is_told_before_a_model_is_looked_for(tmp_path: Path, kind: str) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    flat = io.BytesIO()
    Image.new("RGB", (500, 1)).save(flat, "PNG")
    data = {"text": b"hello", "truncated": whole.getvalue()[:-400], "empty": b"", "flat": flat.getvalue()}[kind]
    path = tmp_path / "still.jpg"
    path.write_bytes(data)
    code, stderr = run("generate", path, "--model", tmp_path / "nowhere", "-o", tmp_path / "x.mp4")
    assert code in (1, 2)
    assert stderr.startswith("error: ")
    assert "nowhere" not in stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["still.jpg"]


def test_train_lists_its_recipes() -> None:
    result = CliRunner().invoke(app, ["train", "--list"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()][:1] == ["mini-vae"]
