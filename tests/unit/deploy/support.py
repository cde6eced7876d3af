"""What the deployment files say, read for the tests: the Dockerfile by stages, YAML documents, command lines."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
import yaml

from cli.main import app


@dataclass(slots=True)
class Stage:
    """One FROM ... AS name, with what follows it: (instruction, text) pairs in order."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for word, text in self.steps if word == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    def command(self, instruction: str) -> list[str]:
        """The words of an ENTRYPOINT or CMD, which are written as JSON."""
        words = json.loads(self.last(instruction))
        assert all(isinstance(word, str) for word in words)
        return list(words)

    def variables(self, instruction: str) -> dict[str, str]:
        """NAME=value pairs of all ARG or ENV lines."""
        pairs = (word.partition("=") for text in self.all(instruction) for word in shlex.split(text))
        return {name: value for name, _, value in pairs}


def stages(text: str) -> dict[str, Stage]:
    """A Dockerfile's stages by name; comments are left out, continued lines joined."""
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found: dict[str, Stage] = {}
    now: Stage | None = None
    for line in re.sub(r"\\\n\s*", " ", kept).splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            now = found[name] = Stage(name, base)
        elif now is not None:
            now.steps.append((word, rest))
    return found


def documents(path: Path) -> list[dict[str, Any]]:
    """A file's YAML documents."""
    return list(yaml.safe_load_all(path.read_text()))


def check_command(words: list[str]) -> dict[str, Any]:
    """Parse words as `stillmotion` would, without running anything; a flag or value it does not know raises."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("stillmotion", list(words))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return dict(context.params)
