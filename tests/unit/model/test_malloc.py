"""Kept memory, by the page faults that a process counts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, threading
import torch
from model.platform import retain_freed_memory

def work():
    for _ in range(40):
        torch.ones(5_000_000) + 1

def counted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = retain_freed_memory()
work()
print(kept, counted())
"""


def _faults(**environment: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_what_is_freed_serves_again_and_the_environment_comes_first() -> None:
    plain, many = _faults(MALLOC_TOP_PAD_="131072")
    assert (plain, _faults(GLIBC_TUNABLES="glibc.malloc.check=0")[0]) == ("False", "False")
    kept, few = _faults()
    assert kept == "True"
    assert few < many / 5
