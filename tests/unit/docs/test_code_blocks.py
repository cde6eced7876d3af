"""Every command that a document shows exists, with these options; data parses, and Python compiles.

Python is run by tests/contract/test_documents.py. A block that is not run says why in a comment before it:
`<!-- not run: needs a GPU -->`.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer.main

from cli.main import app
from serving.gateway import Settings, create_app
from tests.conftest import ROOT
from tests.support.documents import DOCUMENTS, FENCED, Block, blocks, commands
from tests.support.fakes import ScriptedEngine

SHELL = {"", "bash", "sh", "console", "indented"}
DATA = {"text", "json", "toml", "python"}
PLACEHOLDER = re.compile(r"^[\[<{(]?[A-Z][A-Z0-9_]+|\.\.\.|^\[")
OUTSIDE = {"git", "cd", "mkdir", "npm", "uv", "export", "cp", "ln", "aiperf"}
"""Commands of other people's, of which nothing is checked."""


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


@cache
def openapi() -> dict[str, Any]:
    document: dict[str, Any] = create_app(ScriptedEngine(), [], Settings()).openapi()
    return document


class Wrong(AssertionError):
    """What a document shows does not exist."""


def check_stillmotion(words: list[str]) -> None:
    """The command, its options and how many arguments it takes."""
    command, rest = command_line(), list(words)
    if rest and rest[0] in {"--version", "--help", "--install-completion", "--show-completion"}:
        return
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if (
        hasattr(command, "commands")
        and not (rest and rest[0].startswith("-"))
        and (rest or not command.invoke_without_command)
    ):
        raise Wrong(f"there is no command {' '.join(words)!r}")
    options = {form: one for one in command.params for form in (*one.opts, *one.secondary_opts)}
    positional = []
    while rest:
        word = rest.pop(0).strip("[]")
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        form, _, value = word.partition("=")
        if form in {"--help", "-h"}:
            return
        if form not in options:
            raise Wrong(f"{' '.join(words)!r} has no option {form}")
        if not options[form].is_flag and not value:
            values = [rest.pop(0) for _ in range(options[form].nargs) if rest]
            check_choice(options[form], values)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    most = None if any(one.nargs == -1 for one in arguments) else len(arguments)
    if most is not None and len(positional) > most and "|" not in positional:
        raise Wrong(f"{' '.join(words)!r} takes {most} arguments")
    if len(positional) < sum(one.required for one in arguments):
        raise Wrong(f"{' '.join(words)!r} lacks an argument")


def check_choice(option: Any, values: list[str]) -> None:
    """A value of an option that has names to choose from is one of them, or a placeholder."""
    kind = option.type_descriptor.annotation
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return
    for value in "|".join(values).split("|"):
        if not PLACEHOLDER.search(value) and value not in {one.value for one in kind}:
            raise Wrong(f"{option.opts[0]} cannot be {value!r}")


def check_python(words: list[str]) -> None:
    """`python -m benchmarks.NAME OPTIONS`: the program is there and knows the options."""
    if words[:1] != ["-m"]:
        return
    name = words[1]
    path = ROOT / f"{name.replace('.', '/')}.py"
    if name.startswith(("benchmarks.", "training.", "serving.", "model.")):
        if not path.is_file():
            raise Wrong(f"there is no module {name}")
        source = path.read_text()
        missing = [
            word
            for word in words[2:]
            if word.startswith("--") and word != "--help" and f'"{word.strip("[]")}"' not in source
        ]
        if missing:
            raise Wrong(f"{name} has no option {missing}")


def check_curl(words: list[str]) -> None:
    """The route is one of the gateway's, and a form's fields are its own."""
    address = next((word for word in words if "localhost:8000" in word or "127.0.0.1:8000" in word), None)
    if address is None:
        return
    parts = [part for part in urlsplit(address if "://" in address else f"http://{address}").path.split("/") if part]
    for path, methods in openapi()["paths"].items():
        own = [part for part in path.split("/") if part]
        if len(own) == len(parts) and all(a == b or a.startswith("{") for a, b in zip(own, parts, strict=True)):
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            form = content.get("multipart/form-data", {}).get("schema", {}).get("$ref")
            if form:
                fields = openapi()["components"]["schemas"][form.rsplit("/", 1)[1]]["properties"]
                sent = [
                    words[number + 1].partition("=")[0]
                    for number, word in enumerate(words)
                    if word in {"-F", "--form-string"}
                ]
                if unknown := set(sent) - set(fields):
                    raise Wrong(f"{path} has no field {unknown}")
            return
    raise Wrong(f"there is no route {address}")


def check_pip(words: list[str]) -> None:
    """Extras are the distribution's own, local paths exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if (found := re.fullmatch(r"(?:stillmotion-server|\.)\[([\w,-]+)\]", word)) and set(found[1].split(",")) - set(
            extras
        ):
            raise Wrong(f"no extra of {word}")
        if word.startswith("./") and not (ROOT / word).exists():
            raise Wrong(f"{word} does not exist")


def check_docker(words: list[str]) -> None:
    """The Dockerfile's stage exists."""
    if "--target" in words:
        stage = words[words.index("--target") + 1]
        if f" AS {stage}" not in (ROOT / "Dockerfile").read_text():
            raise Wrong(f"the Dockerfile has no stage {stage}")


def check_kubectl(words: list[str]) -> None:
    """The files exist."""
    for option in ("-f", "-k"):
        if option in words and not (ROOT / words[words.index(option) + 1]).exists():
            raise Wrong(f"{words[words.index(option) + 1]} does not exist")


def check_make(words: list[str]) -> None:
    """The target exists."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        if "=" not in word and word not in targets:
            raise Wrong(f"make has no target {word}")


CHECKS = {
    "stillmotion": check_stillmotion,
    "python": check_python,
    "curl": check_curl,
    "pip": check_pip,
    "docker": check_docker,
    "kubectl": check_kubectl,
    "make": check_make,
    "pytest": lambda words: None,
    "tritonserver": lambda words: None,
    ".ci/run": lambda words: None,
}


def check_command(line: str, *, strict: bool) -> None:
    """One command line; `strict`: a command that nobody here knows is a fault."""
    for part in re.split(r"\s(?:&&|\||;)\s", line):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if not words:
            continue
        name = words[0] if words[0].startswith(".ci/") else Path(words[0]).name
        if name in CHECKS:
            CHECKS[name](words[1:])
        elif strict and name not in OUTSIDE:
            raise Wrong(f"what is {name!r}? Name the block's language, or say why it is not run")


def check_block(block: Block) -> None:
    """A block of any language."""
    if block.language in SHELL:
        for line in commands(block.text):
            shown = block.language != "console" or f"$ {line}" in block.text
            if shown and not block.reason and (block.language != "indented" or looks_like_a_command(line)):
                check_command(line, strict=block.language not in {"indented"})
    elif block.language == "python":
        ast.parse(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language not in DATA:
        raise Wrong(f"a block of the language {block.language!r}")


def check_spans(document: Path) -> list[str]:
    """Faults of the commands in running text; one that breaks off in "..." is no command."""
    text = FENCED.sub("", document.read_text())
    faults = []
    for span in re.findall(r"`((?:\.venv/bin/)?stillmotion [^`]+)`", text):
        line = " ".join(span.split())
        try:
            if not line.endswith("...") and not is_name(line.split()[1:]):
                check_command(line, strict=True)
        except (Wrong, ValueError) as error:
            faults.append(f"{document.relative_to(ROOT)}: {error}")
    return faults


def is_name(words: list[str]) -> bool:
    """Whether this is a command's or a group's name alone: `stillmotion keys`."""
    command = command_line()
    for word in words:
        command = getattr(command, "commands", {}).get(word)
    return command is not None


def looks_like_a_command(line: str) -> bool:
    """Indented blocks show also what is no command."""
    return Path(line.split()[0]).name in CHECKS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_shows_exists(document: Path) -> None:
    faults = check_spans(document)
    for block in blocks(document):
        try:
            check_block(block)
        except (Wrong, ValueError, SyntaxError) as error:
            faults.append(f"{block.name}: {error}")
    assert not faults


@pytest.mark.parametrize(
    "line",
    [
        "stillmotion generate photo.jpg --sed 7",
        "stillmotion nothing",
        "stillmotion serve --engine magic",
        "stillmotion keys revoke",
        "python -m benchmarks.nothing",
        "python -m benchmarks.one_video --nothing",
        "curl http://127.0.0.1:8000/nothing",
        "curl -F picture=@photo.jpg http://127.0.0.1:8000/generate/image-to-video",
        "pip install 'stillmotion-server[nothing]'",
        "docker build --target nothing .",
        "kubectl apply -f deploy/nothing.yaml",
        "make nothing",
        "nothing at all",
    ],
)
def test_it_can_fail(line: str) -> None:
    with pytest.raises(Wrong):
        check_command(line, strict=True)
