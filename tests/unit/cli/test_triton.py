"""`stillmotion triton` and `serve --engine triton`: wrong usage, told at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--engine", "triton"], "go together"),
        (["serve", "--triton-url", "127.0.0.1:1"], "go together"),
        (["serve", "--engine", "triton", "--triton-url", "127.0.0.1:1", "--threads", "2"], "threads is the Triton"),
        (["triton"], "--model-repository"),
        (["triton", "--model-repository", "nowhere"], "nowhere"),
        (["export", "mini-image-to-video", "--backend", "torch", "--out", "x", "--width", "64"], "as they are"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert not list(tmp_path.glob("x*"))


def test_without_a_server_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tmp_path / "mini"
    model.mkdir()
    (model / "config.pbtxt").touch()
    result = CliRunner().invoke(app, ["triton", "--model-repository", str(tmp_path)])
    assert result.exit_code == 1, result.output
    assert "--yes fetches" in result.output


@pytest.mark.parametrize("order", [["load", "mini"], ["unload", "mini"], ["status"]])
def test_orders_to_a_server_that_is_not_there(order: list[str]) -> None:
    result = CliRunner().invoke(app, ["triton", *order, "--url", "127.0.0.1:9"])
    assert result.exit_code == 1, result.output
    assert "127.0.0.1:9 cannot serve this now" in result.output
