"""The keys as a running gateway sees them: read again every other second, checked without a query a request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serving.jobs.threads import in_thread
from serving.keys import secret
from serving.keys.bucket import Bucket
from serving.keys.store import Key, KeyStore, StoredKey

_FRESH_S: Final = 2.0
"""A key made or revoked elsewhere counts here after this long at most."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request. `key` is None where there are no keys: then everybody is one caller."""

    key: Key | None = None

    @property
    def owner(self) -> str:
        """Whose jobs the caller's are: the key's id, empty where there are no keys."""
        return "" if self.key is None else self.key.id

    @property
    def weight(self) -> float:
        """Of the caller's share of the engine."""
        return 1.0 if self.key is None else self.key.weight

    @property
    def max_jobs(self) -> int | None:
        """Jobs waiting or running at once; None for no limit."""
        return None if self.key is None else self.key.max_jobs


class KeyRing:
    """Tells who a caller is, and whether they come too often.

    Args:
        store: where the keys are.
        clock: seconds, monotonic.
    """

    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._keys: dict[str, StoredKey] = {}
        self._read_at = -math.inf
        self._reading = asyncio.Lock()
        self._buckets: dict[str, Bucket] = {}

    async def required(self) -> bool:
        """Whether callers need a key: yes from the first key made on, also when all are revoked."""
        await self._refresh()
        return bool(self._keys)

    async def identify(self, bearer: str | None) -> Caller | None:
        """The caller with this bearer token, or None for nobody we know."""
        if not await self.required():
            return Caller()
        token = None if bearer is None else secret.parse(bearer)
        if token is None:
            return None
        stored = self._keys.get(token.key_id)
        right = secret.is_right(token, None if stored is None else (stored.salt, stored.hash))
        if stored is None or not right or stored.key.revoked_at is not None:
            return None
        return Caller(stored.key)

    def take(self, caller: Caller) -> float:
        """Count one submission: 0.0 if it may come in, else seconds until the next may."""
        now = self._clock()
        bucket = self._bucket(caller, now)
        return 0.0 if bucket is None else bucket.take(now)

    def charge(self, caller: Caller, more: int) -> None:
        """Count so many more for one submission that held many: the next may come when they are paid for."""
        now = self._clock()
        bucket = self._bucket(caller, now)
        if bucket is not None:
            bucket.charge(more, now)

    def _bucket(self, caller: Caller, now: float) -> Bucket | None:
        key = caller.key
        if key is None or key.per_minute is None:
            return None
        bucket = self._buckets.get(key.id)
        if bucket is None or bucket.capacity != key.per_minute:
            bucket = self._buckets[key.id] = Bucket.per_minute(key.per_minute, now)
        return bucket

    async def _refresh(self) -> None:
        if self._clock() - self._read_at < _FRESH_S:
            return
        async with self._reading:
            if self._clock() - self._read_at < _FRESH_S:
                return
            found = await in_thread(self._store.all)
            self._keys = {stored.key.id: stored for stored in found}
            self._read_at = self._clock()
