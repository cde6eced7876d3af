"""`pytest -p tests.support.cpu_times --cpu-times FILE`: processor seconds of each test file, children included.

With --cpu-times-by-test, of each test; what a module's fixtures cost is in its first test.

Wall time says little on a busy machine; processor time says what a file costs. With xdist each worker writes its own
FILE.gwN; a file's tests run in one worker (`--dist loadfile`), so the sums of all of them are the whole.
"""

from __future__ import annotations

import json
import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

_SECONDS: Final[Counter[str]] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-times", type=Path, help="write processor seconds of each test file to this JSON file")
    parser.addoption("--cpu-times-by-test", action="store_true", help="of each test, not of each file")


def cpu_s() -> float:
    """Of this process and the children that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    before = cpu_s()
    result = yield
    name = item.nodeid if item.config.getoption("--cpu-times-by-test") else item.nodeid.partition("::")[0]
    _SECONDS[name] += cpu_s() - before
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--cpu-times")
    if path is None or not _SECONDS:
        return
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    path = path if worker is None else path.with_name(f"{path.name}.{worker}")
    path.write_text(json.dumps({name: round(seconds, 2) for name, seconds in _SECONDS.most_common()}, indent=1) + "\n")
