"""Every path and dotted name of ours that a document names exists."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "RESULTS.md"]
)
FOLDERS = "model|training|export|serving|cli|client|tests|benchmarks|deploy|docs"
PATH = re.compile(rf"(?<![\w./$-])(?:{FOLDERS})/[\w./*-]*[\w*/]")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
DOTTED = re.compile(r"(?<![\w./-])(?:model|training|export|serving|cli|benchmarks)(?:\.[A-Za-z_]\w*)+")
PROSE = re.compile(r"(?:model|export)\.(?:onnx|py|safetensors|json|plan|md|png|mp4)\b")
"""A file of a user's, not a module."""


def generated_pages() -> set[Path]:
    """What the site's build adds (docs/site/pages.py): documents may link to it."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "site" / "pages.py")
    assert spec and spec.loader
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    return {ROOT / "docs" / name for name in (*pages.PAGES, *pages.sources().values())}


GENERATED = generated_pages()


def named_paths(document: Path) -> Iterator[str]:
    """Paths below one of our folders; a placeholder (NAME, RUN) is none."""
    for path in PATH.findall(document.read_text()):
        if not re.search(r"[A-Z]{3,}|NNNN", path.replace("RESULTS.md", "").replace("README.md", "")):
            yield path


def exists(path: str) -> bool:
    """A file, a folder, or a pattern that something matches."""
    return any(ROOT.glob(path.rstrip("/"))) if "*" in path else (ROOT / path).exists()


def defines(module: Path, name: str) -> bool:
    """Whether a module's source has the name at its top level, or inside a class of it."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.alias) and (node.asname or node.name) == name:
            return True
    return False


def resolves(dotted: str) -> bool:
    """A package or module, and what follows is defined in it."""
    place = ROOT
    parts = dotted.split(".")
    for number, part in enumerate(parts):
        if (place / part).is_dir():
            place /= part
            continue
        module = place / f"{part}.py"
        if module.is_file():
            return all(defines(module, name) for name in parts[number + 1 :])
        package = place / "__init__.py"
        return package.is_file() and defines(package, part)
    return True


def leads_somewhere(path: Path) -> bool:
    """A file or a page of the site, before the part of a link that names a heading."""
    plain = Path(os.path.normpath(str(path).partition("#")[0]))
    return plain.exists() or plain in GENERATED


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    missing = [path for path in named_paths(document) if not exists(path)]
    missing += [link for link in LINK.findall(text) if not leads_somewhere(document.parent / link)]
    missing += [name for name in DOTTED.findall(text) if not PROSE.match(name) and not resolves(name)]
    assert not missing


def test_it_can_fail() -> None:
    assert not exists("model/nothing.py") and not exists("model/*/nothing.py")
    assert not resolves("model.nothing") and not resolves("model.params.nothing")
    assert resolves("model.params.SOLVERS") and resolves("serving.engine.settings.EngineSettings")
