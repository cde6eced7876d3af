"""The Python of README, documents and notebooks is run, against the gateway with a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.contract.support import entry, listening_in_a_thread
from tests.support.documents import DOCUMENTS, blocks
from tests.support.fakes import ScriptedEngine

ADDRESS = "http://127.0.0.1:8000"
PYTHON = {
    document: [block for block in blocks(document) if block.language == "python" and not block.reason]
    for document in DOCUMENTS
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = [replace(entry(), previews=True)]
    with listening_in_a_thread(tmp_path_factory.mktemp("documents"), ScriptedEngine(), models) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the pictures that documents speak of."""
    for name in ("photo.jpg", "still.jpg"):
        Image.new("RGB", (96, 64), (200, 120, 40)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "document", [document for document, found in PYTHON.items() if found], ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_python_of_a_document_runs(document: Path, address: str, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in PYTHON[document]:
        exec(compile(block.text.replace(ADDRESS, address), block.name, "exec"), names)
    made = [path for path in folder.iterdir() if path.suffix == ".mp4"]
    assert len(made) >= any("clip.mp4" in block.text or "photo.mp4" in block.text for block in PYTHON[document])


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_every_cell_of_a_notebook_runs(notebook: Path, address: str, folder: Path) -> None:
    document = json.loads(notebook.read_text())
    assert document["nbformat"] == 4 and len({cell["id"] for cell in document["cells"]}) == len(document["cells"])
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(document["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "outputs are not committed"
            source = "".join(cell["source"]).replace(ADDRESS, address)
            exec(compile(source, f"{notebook.name}:{number}", "exec"), names)
    assert {path.name for path in folder.glob("*.mp4")} == {"clip.mp4", *(f"motion-{n}.mp4" for n in (40, 127, 220))}
