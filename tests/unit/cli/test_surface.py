"""The command's surface is frozen: a changed option is a decision, made in tests/golden/cli.txt."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.main import app
from cli.options import FormatChoice, ResizeChoice, ScheduleChoice, SolverChoice
from model.backends.registry import AUTO, BACKENDS
from model.params import SCHEDULES, SOLVERS, OutputFormat, ResizeMode
from serving.engine.settings import DtypeName, engine_options

GOLDEN = Path("tests") / "golden" / "cli.txt"


def described(command: Any, name: str) -> Iterator[str]:
    """A command and its parameters, a line each; independent of how help is laid out."""
    if hasattr(command, "commands"):
        if command.params:
            yield from parameters(command, name)
        for child in sorted(command.commands):
            yield from described(command.commands[child], f"{name} {child}")
        return
    yield from parameters(command, name)


def parameters(command: Any, name: str) -> Iterator[str]:
    """A command's own."""
    yield name
    for parameter in command.params:
        what = " ".join(parameter.opts) if parameter.param_type_name == "option" else parameter.name.upper()
        notes = [note for note in ("is_flag", "required", "multiple") if getattr(parameter, note, False)]
        yield "    " + " ".join([what, *notes])


def test_the_surface_is_the_golden_one(root: Path) -> None:
    actual = "\n".join(described(typer.main.get_command(app), "stillmotion")) + "\n"
    golden = root / GOLDEN
    assert actual == golden.read_text(), f"if the change is meant, write this to {GOLDEN}:\n{actual}"


def test_choices_are_those_of_the_model() -> None:
    assert tuple(SolverChoice) == SOLVERS
    assert tuple(ScheduleChoice) == SCHEDULES
    assert set(ResizeChoice) == set(ResizeMode.__args__)  # type: ignore[attr-defined]
    choices = {setting: option.choices for setting, option in engine_options()}
    assert set(choices["backend"]) == {AUTO, *BACKENDS}
    assert set(choices["dtype"]) == set(DtypeName.__args__)  # type: ignore[attr-defined]
    assert set(FormatChoice) == set(OutputFormat.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["generate"],
        ["serve"],
        ["models"],
        ["keys", "create"],
        ["replay"],
        ["data", "starter"],
        ["train"],
        ["eval"],
        ["batch"],
    ],
)
def test_every_command_has_help(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


HEAVY = {
    *("torch", "diffusers", "transformers", "numpy", "scipy", "av", "PIL", "cv2", "rich"),
    *("fastapi", "starlette", "uvicorn", "pydantic", "sqlalchemy", "alembic", "fsspec", "httpx2", "stillmotion"),
}


def test_help_answers_in_half_a_second(root: Path) -> None:
    """In processor time: what other programs take meanwhile is not the command's."""
    took = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "cli", "--help"], cwd=root, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.5, took


def test_help_loads_nothing_heavy(root: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cli", "--help"]
    told = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    assert {"cli", "typer"} <= loaded
    assert not loaded & HEAVY
