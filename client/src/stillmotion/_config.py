"""How a client is set up: arguments first, then the environment, then defaults."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass

import httpx2

from stillmotion._flows import Context
from stillmotion._retry import RetryPolicy
from stillmotion._version import __version__

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
"""Seconds for each read, write and wait for a connection. Event streams send something every 15 s or so."""

JOB_TIMEOUT = 1800.0
"""Seconds that waiting for a job lasts unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Config:
    """Resolved settings of a client."""

    base_url: str
    headers: dict[str, str]
    timeout: httpx2.Timeout
    context: Context


def resolve(
    base_url: str | None, api_key: str | None, timeout: float | httpx2.Timeout | None, retry: RetryPolicy | None
) -> Config:
    """Fill in what is None from STILLMOTION_BASE_URL and STILLMOTION_API_KEY, then from the defaults.

    Raises:
        ValueError: the base URL is not http(s).
    """
    address = (base_url or os.environ.get("STILLMOTION_BASE_URL") or DEFAULT_BASE_URL).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"the base URL must start with http:// or https://, not {address!r}")
    key = api_key or os.environ.get("STILLMOTION_API_KEY")
    headers = {"User-Agent": f"stillmotion-python/{__version__} python/{platform.python_version()}"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    seconds = DEFAULT_TIMEOUT if timeout is None else httpx2.Timeout(timeout)
    return Config(address, headers, seconds, Context(address, retry or RetryPolicy(), time.monotonic))
