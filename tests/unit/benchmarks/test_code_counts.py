"""The counts of a small tree that is known, and of this one beside import-linter's own import graph."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import grimp
import pytest


@pytest.fixture
def code_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module; its folder is no package of ours."""
    monkeypatch.syspath_prepend(str(root))
    return import_module("benchmarks.code_counts")


FILES = {
    "model/__init__.py": "",
    "model/tasks.py": 'STILL = TaskSpec(name="still")\nWORDS = TaskSpec(name="words")\nTASKS = {"still": STILL}\n',
    "model/params.py": "Params = StillParams | WordsParams\n",
    "model/encoders.py": "import torch\nfrom model import preparation\nEncoders = Vision | Text\n",
    "model/preparation.py": "def late():\n    from model.encoders import Vision\n    return Vision\n",
    "model/checks.py": (
        "from model import tasks\n"
        "LONG = ('still', 'words')\n"
        "LIMITS = {'still': 3}\n"
        "def check(task, params, encoder, told):\n"
        "    _told_before = told.asked  # told and asked in a comment\n"
        "    assert isinstance(params, WordsParams)\n"
        "    if task == 'still' or task is tasks.WORDS or task in LONG:\n"
        "        return 'told'\n"
        "    match encoder:\n"
        "        case Vision():\n"
        "            return task.name != 'other'\n"
    ),
    **{f"{package}/__init__.py": "" for package in ("training", "export", "serving", "cli", "client/src/stillmotion")},
    "training/typed.py": "if TYPE_CHECKING:\n    from training import plain\n" + "x = 1\n" * 70,
    "training/plain.py": "from training.typed import x\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_known_tree_is_counted(code_counts: Any, tree: Path) -> None:
    found = code_counts.counts(tree)
    assert found["product_files"] == len(FILES)
    assert found["product_lines"] == sum(text.count("\n") for text in FILES.values())
    assert found["short_files"] == len(FILES) - 1
    assert found["identifiers"] == {"told": 2, "asked": 1}
    assert found["identifiers_with_the_word"] == {"told": 3, "asked": 1}
    assert found["listed"]["import_cycles"] == [
        ["model.encoders", "model.preparation"],
        ["training.plain", "training.typed"],
    ]
    assert found["import_cycles_at_import_time"] == 0


def test_a_check_by_task_is_found_in_each_of_its_forms(code_counts: Any, tree: Path) -> None:
    listed = code_counts.counts(tree)["listed"]
    assert {(place["path"], place["line"]) for place in listed["checks_by_task"]} == {
        ("model/checks.py", line) for line in (6, 7, 10)
    }
    assert len(listed["checks_by_task"]) == 5  # three of them in line 7
    assert [place["line"] for place in listed["tables_by_task"]] == [3]


def test_why_a_short_file_stands_alone(code_counts: Any, tree: Path) -> None:
    reasons = {one["path"]: one["reason"] for one in code_counts.counts(tree)["listed"]["short_files"]}
    assert reasons["model/__init__.py"] == "a package's face"
    assert reasons["training/plain.py"] == "used by training.typed"
    assert reasons["model/tasks.py"] == "used by model.checks"


@pytest.mark.parametrize("missing", ["model/params.py", "model/encoders.py", "model/tasks.py"])
def test_a_tree_whose_task_table_is_not_found_has_no_count(code_counts: Any, tree: Path, missing: str) -> None:
    (tree / missing).write_text("")
    with pytest.raises(ValueError, match="were not found"):
        code_counts.counts(tree)


def test_the_imports_are_those_that_grimp_finds(code_counts: Any, root: Path) -> None:
    graph = grimp.build_graph("model", "stillmotion", cache_dir=None)
    sources = [one for one in code_counts.product_sources(root) if one.path.startswith(("model/", "client/"))]
    mine = code_counts.import_graph(sources)
    assert set(mine) == graph.modules
    for module, imported in mine.items():
        assert imported & graph.modules == graph.find_modules_directly_imported_by(module)
