"""Defects of the CUDA paths: each can still be put back, its test is there, docs/cuda.md has it, and all are found."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from benchmarks import cuda_mutations
from benchmarks.cuda_defects import DEFECTS, Defect

BY_NAME = pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.what)


@BY_NAME
def test_a_defect_can_be_put_back_and_its_test_is_there(defect: Defect, root: Path) -> None:
    texts = {edit.file: (root / edit.file).read_text() for edit in defect.edits}
    for edit in defect.edits:
        assert texts[edit.file].count(edit.now) == 1, f"{edit.file} was changed: mend the edit"
        assert edit.before not in ("", edit.now) or "\n" in edit.now
        texts[edit.file] = texts[edit.file].replace(edit.now, edit.before)
    for text in texts.values():
        ast.parse(text)
    file, name = defect.test.split("::")
    functions = [node.name for node in ast.parse((root / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name.partition("[")[0] in functions


def test_the_page_has_them_all(root: Path) -> None:
    assert cuda_mutations.table() in (root / "docs" / "cuda.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_defect_is_found_by_its_test(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["cuda_mutations"])
    cuda_mutations.main()
    assert f"{len(DEFECTS)} of {len(DEFECTS)} defects are found" in capsys.readouterr().out
