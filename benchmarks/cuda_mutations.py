"""Mutation tests of the CUDA paths: put each defect that they once had back, and see the test that must fail do so.

    python -m benchmarks.cuda_mutations               every defect: some minutes of a CPU, no GPU
    python -m benchmarks.cuda_mutations --only pool   those whose description has the word
    python -m benchmarks.cuda_mutations --table       the table of docs/cuda.md

The tests of CUDA paths run without a GPU, on stand-ins for torch.cuda, so what they are worth is whether they fail
where the code is wrong. Each defect (benchmarks.cuda_defects) is one that the paths had when they were first written,
as an edit of today's files. The edits are made in a copy of the checkout, in which the defect's test runs twice: with
the defect it must fail, by the assertion that is named, and without it pass.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.cuda_defects import DEFECTS, Defect
from benchmarks.entry import run_main

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "cli", "client", "export", "model", "serving", "tests", "training")


def table() -> str:
    """The defects and the tests that fail with each, in Markdown."""
    lines = ["| defect | mended in | test |", "|---|---|---|"]
    for one in DEFECTS:
        file, name = one.test.split("::")
        lines.append(f"| {one.what} | {one.commit} | `{file}`: `{name}` |")
    return "\n".join(lines)


def put_back(folder: Path, defect: Defect) -> dict[Path, str]:
    """Make the edits in a copy of the checkout; returns what the files held before.

    Raises:
        ValueError: a place does not stand in its file, or more than once.
    """
    held: dict[Path, str] = {}
    for edit in defect.edits:
        file = folder / edit.file
        text = file.read_text()
        if text.count(edit.now) != 1:
            raise ValueError(f"{edit.file} has {text.count(edit.now)} times, not once:\n{edit.now}")
        held.setdefault(file, text)
        file.write_text(text.replace(edit.now, edit.before))
    return held


class Tests:
    """The tests of a copy of the checkout, each run on its files as they are then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = Path(__file__).with_name("preloaded_pytest.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def failure(self, *tests: str) -> str | None:
        """What pytest says of the tests, whatever their markers; None where all pass."""
        output = self.folder / "pytest.txt"
        assert self._process.stdin is not None and self._process.stdout is not None
        print(output, *tests, file=self._process.stdin, flush=True)
        code = self._process.stdout.readline().strip()
        return None if code == "0" else output.read_text()

    def close(self) -> None:
        """Let the process end."""
        self._process.communicate()


def checked(tests: Tests, defect: Defect) -> str:
    """`killed` where the test fails with the defect for the reason named; else what is wrong, with pytest's words."""
    held = put_back(tests.folder, defect)
    try:
        said = tests.failure(defect.test)
    finally:
        for file, text in held.items():
            file.write_text(text)
    if said is None:
        return "SURVIVED: the test passes with the defect"
    failed = [line for line in said.splitlines() if line.startswith((">", "E "))]
    if not any(defect.says in line for line in failed):
        return f"FAILS FOR ANOTHER REASON than {defect.says!r}:\n{said[-2000:]}"
    return "killed"


def main() -> None:
    """Read the arguments; exit code 1 unless every defect is found, and every test passes without one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORD", default="", help="defects whose description has it")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    chosen = [one for one in DEFECTS if options.only in one.what]
    with tempfile.TemporaryDirectory() as name, closing(Tests(copy_of_checkout(Path(name)))) as tests:
        found = [_reported(tests, one) for one in chosen]
        sound = tests.failure(*dict.fromkeys(one.test for one in chosen))
    print(f"{sum(found)} of {len(chosen)} defects are found; without them {sound or 'the same tests pass'}")
    if sound is not None or not all(found):
        raise SystemExit(1)


def _reported(tests: Tests, defect: Defect) -> bool:
    said = checked(tests, defect)
    print(f"{said:8} {defect.what}\n         {defect.test}", flush=True)
    return said == "killed"


def copy_of_checkout(folder: Path) -> Path:
    """The code, without weights and other data, where it may be edited."""
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "zoo", "*.safetensors", "node_modules")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, folder / file)
    return folder


if __name__ == "__main__":
    run_main(main)
