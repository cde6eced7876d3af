"""What counts as entered, on a small tree that stands for a checkout; and the dataset that the training path reads."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from training.data.starter import load_items


@pytest.fixture
def files_entered(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module; its folder is no package of ours."""
    monkeypatch.syspath_prepend(str(root))
    return import_module("benchmarks.files_entered")


FILES = {
    "pyproject.toml": '[project.scripts]\nstillmotion = "cli.main:app"\n',
    "client/src/stillmotion/__init__.py": "",
    "cli/__init__.py": "",
    "cli/main.py": (
        "import sys\nimport threading\nfrom model import called, imported, on_a_thread\n"
        "def app():\n"
        "    assert sys.argv == ['stillmotion', 'generate', 'x']\n"
        "    called.run()\n"
        "    thread = threading.Thread(target=on_a_thread.run)\n"
        "    thread.start()\n    thread.join()\n"
        "    raise SystemExit(0)\n"
    ),
    "model/__init__.py": "",
    "model/called.py": "def run():\n    return 1\n",
    "model/on_a_thread.py": "def run():\n    return 1\n",
    "model/imported.py": "from model.by_import import table\nclass One:\n    x = table()\n",
    "model/by_import.py": "def table():\n    return {}\n",
}


def test_entered_is_what_was_called_on_any_thread_and_not_by_an_import(files_entered: Any, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    report = tmp_path / "report.json"
    command = [sys.executable, files_entered.__file__, "--child", str(tmp_path), str(report), "generate", "x"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    found = json.loads(report.read_text())
    assert found["entered"] == ["cli/main.py", "model/called.py", "model/on_a_thread.py"]
    assert set(found["imported"]) == {name for name in FILES if name.startswith(("cli/", "model/"))}


def test_only_product_files_count(files_entered: Any, tmp_path: Path) -> None:
    named = {name: files_entered.product_path(str(tmp_path / name), tmp_path) for name in ("model/a.py", "tests/a.py")}
    assert named == {"model/a.py": "model/a.py", "tests/a.py": None}
    assert files_entered.product_path("<string>", tmp_path) is None


def test_the_dataset_is_one_that_training_reads(files_entered: Any, tmp_path: Path) -> None:
    files_entered.write_dataset(tmp_path)
    (item,) = load_items(tmp_path)
    assert (item.split, item.num_frames) == ("train", files_entered.CLIP_FRAMES)
    import av

    with av.open(str(tmp_path / item.file)) as container:
        assert sum(1 for _ in container.decode(video=0)) == files_entered.CLIP_FRAMES
