"""Ray: imported only here and where it is needed, started quietly on this machine or joined, and always left again."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from model.errors import GenerationFailed, MissingExtra
from serving.engine.settings import usable_cores

_OBJECT_STORE_BYTES = 200_000_000
"""Only rows and results pass through it; pictures and videos never do."""
_STARTS = 3
"""Ray gives a machine 30 s to start in, whatever else it is doing."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TQDM_PATCH_PRINT": "0",
    "RAY_worker_niceness": "0",  # of workers against their driver; by default 15
}


def load_ray() -> ModuleType:
    """The package `ray`, with `ray.data`.

    Raises:
        MissingExtra: it is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module("pyarrow")  # first: what ray.data raises without it is no ModuleNotFoundError
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise MissingExtra("offline rendering", "batch") from error


@contextmanager
def cluster(address: str | None) -> Iterator[ModuleType]:
    """Ray, started on this machine or joined at an address; whoever started it before keeps it.

    Raises:
        MissingExtra: ray is not installed.
        GenerationFailed: nothing answers at the address.
    """
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    stop = signal.getsignal(signal.SIGTERM)
    local = {"num_cpus": usable_cores(), "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
    _begin(ray, address, {} if address else local)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)  # Ray puts a handler of its own in its place
    try:
        yield ray
    finally:
        ray.shutdown()


def _begin(ray: ModuleType, address: str | None, settings: dict[str, Any]) -> None:
    for left in reversed(range(_STARTS)):
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **settings)
            return
        except Exception as error:  # Ray raises plain ones
            ray.shutdown()
            if address is None and left:
                continue
            where = f"there is no Ray cluster at {address}" if address else "Ray does not start on this machine"
            raise GenerationFailed(f"{where}: {error}", code="no_cluster") from error
