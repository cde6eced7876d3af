"""pytest in forks of one process that has imported the libraries, which takes longer than most tests. Run as a file.

    python -P benchmarks/preloaded_pytest.py FOLDER

Each line of stdin is an output file and node ids, by spaces; the answer on stdout is pytest's exit code. Our own
modules are imported in the forks only, from FOLDER, so that they may be edited between two lines.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import diffusers.models  # noqa: F401 - imported for the forks
import pytest
import torch  # noqa: F401
import transformers.models.clip.modeling_clip  # noqa: F401
from diffusers.models.unets import unet_spatio_temporal_condition  # noqa: F401

IMPORTED = "ignore:Module already imported"
"""What pytest says of its plugins that the libraries brought along."""


def run(output: str, tests: list[str]) -> int:
    """pytest's exit code, and its output in a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-W", IMPORTED, "-m", "slow or not slow", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def main() -> None:
    """Serve stdin's lines."""
    folder = Path(sys.argv[1])
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "client" / "src")]
    for line in sys.stdin:
        output, *tests = line.split()
        print(run(output, tests), flush=True)


if __name__ == "__main__":
    main()
