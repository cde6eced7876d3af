"""API keys: who may call, the weight of their share of the engine, and their limits (rate, jobs). Imports no torch.

A key is `sm_ID_SECRET`. The id is public: it names the row, owns jobs, labels metrics. The secret is 256 random bits,
shown once when the key is made. Only SHA-256(salt + secret) is stored: a slow hash (argon2, scrypt) buys time against
guessing passwords that people chose, nobody guesses 256 random bits, and a slow hash in front of every request would
be a way to overload the server. The salt hides equal secrets. Compared in constant time; an unknown id costs the same
comparison, against a hash that nothing has.

Rates are token buckets: in Postgres, where the job store is one that several gateways share, else in the process. A
running gateway reads the keys every other second.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import extract, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from model.errors import InvalidRequest
from serving.background import run_in_thread
from serving.jobs.database import Database
from serving.jobs.tables import ApiKeyRow, RateRow


@dataclass(slots=True)
class Bucket:
    """Full at first.

    Args:
        capacity: how many may come at once.
        per_second: how fast it refills.
    """

    capacity: float
    per_second: float
    level: float
    at: float

    @classmethod
    def per_minute(cls, limit: int, now: float) -> Bucket:
        """A minute's worth at once, refilled over a minute."""
        return cls(float(limit), limit / 60, float(limit), now)

    def take(self, now: float) -> float:
        """Take one: 0.0 if there was one, else seconds until there is (and nothing is taken).

        A clock that steps back adds nothing.
        """
        self._refill(now)
        if self.level >= 1:
            self.level -= 1
            return 0.0
        return (1 - self.level) / self.per_second

    def charge(self, more: int, now: float) -> None:
        """Take so many more for what was admitted as one; where there are not so many, the rest is owed."""
        self._refill(now)
        self.level -= more

    def _refill(self, now: float) -> None:
        self.level = min(self.capacity, self.level + max(0.0, now - self.at) * self.per_second)
        self.at = now


class SharedBuckets:
    """Token buckets in a database, one a key, whichever gateway takes from it. Every method blocks.

    Time is the database's, since the gateways' clocks differ.

    Args:
        database: Postgres, with the tables in place.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, key_id: str, limit: int) -> float:
        """Take one of `limit` a minute, as `Bucket.take`."""
        with self._locked(key_id, limit) as (bucket, now):
            return bucket.take(now)

    def charge(self, key_id: str, limit: int, more: int) -> None:
        """Take so many more, as `Bucket.charge`."""
        with self._locked(key_id, limit) as (bucket, now):
            bucket.charge(more, now)

    @contextmanager
    def _locked(self, key_id: str, limit: int) -> Iterator[tuple[Bucket, float]]:
        """The key's bucket and the time, written back at the end; others wait until then."""
        with self._database.write() as session:
            now = float(session.scalar(select(extract("epoch", func.clock_timestamp()))) or 0.0)
            full = insert(RateRow).values(key_id=key_id, level=float(limit), at=now)
            session.execute(full.on_conflict_do_nothing())
            row = session.get_one(RateRow, key_id, with_for_update=True, populate_existing=True)
            bucket = Bucket(float(limit), limit / 60, row.level, row.at)
            yield bucket, now
            row.level, row.at = bucket.level, bucket.at


_SHAPE: Final = re.compile(r"sm_([0-9a-f]{12})_([0-9a-f]{64})\Z")
_NOBODY: Final = (secrets.token_hex(16), secrets.token_hex(32))
"""Salt and hash that an unknown id is compared with."""


@dataclass(frozen=True, slots=True)
class Token:
    """A key's two parts. `repr` hides the secret, so that no log line or traceback shows it."""

    key_id: str
    secret: str

    def __str__(self) -> str:
        return f"sm_{self.key_id}_{self.secret}"

    def __repr__(self) -> str:
        return f"Token({self.key_id}, ...)"


def new_token() -> Token:
    """A fresh key."""
    return Token(secrets.token_hex(6), secrets.token_hex(32))


def parse(text: str) -> Token | None:
    """The parts of a key as a caller sends it; None for what cannot be one."""
    match = _SHAPE.match(text)
    return None if match is None else Token(*match.groups())


def new_salt() -> str:
    """A salt, in hex."""
    return secrets.token_hex(16)


def digest(salt: str, secret: str) -> str:
    """What is stored of a secret: SHA-256 in hex."""
    return hashlib.sha256(bytes.fromhex(salt) + bytes.fromhex(secret)).hexdigest()


def is_right(token: Token, salt_and_hash: tuple[str, str] | None) -> bool:
    """Whether the secret is the stored one, in constant time; None (an unknown id) is as slow, and wrong."""
    salt, stored = salt_and_hash or _NOBODY
    same = hmac.compare_digest(digest(salt, token.secret), stored)
    return same and salt_and_hash is not None


MAX_WEIGHT = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key without its secret.

    Args:
        id: public; owns jobs.
        weight: of its share of the engine, against the other keys'.
        per_minute: submissions a minute, all at once if need be; None for no limit.
        max_jobs: jobs waiting or running at once; None for no limit.
        operator: may read /metrics, which tells of every key's usage; sees no other key's jobs either.
        created_at, revoked_at: Unix seconds.
    """

    id: str
    name: str
    weight: float = 1.0
    per_minute: int | None = None
    max_jobs: int | None = None
    operator: bool = False
    created_at: float
    revoked_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key, and what its secret is checked against."""

    key: Key
    salt: str
    hash: str


class KeyStore:
    """Keys in a database. Every method blocks on it.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create(
        self,
        name: str,
        *,
        weight: float = 1.0,
        per_minute: int | None = None,
        max_jobs: int | None = None,
        operator: bool = False,
    ) -> tuple[Key, Token]:
        """Make a key; its token is returned here and never again.

        Raises:
            InvalidRequest: the name is taken or empty, or a limit is out of range.
        """
        _check(name, weight, per_minute, max_jobs)
        token, salt = new_token(), new_salt()
        with self._database.write() as session:
            if _named(session, name) is not None:
                raise InvalidRequest(
                    f"there is a key called {name!r} already; choose another name, or revoke it first", param="name"
                )
            row = ApiKeyRow(
                id=token.key_id,
                name=name,
                salt=salt,
                hash=digest(salt, token.secret),
                weight=weight,
                per_minute=per_minute,
                max_jobs=max_jobs,
                operator=operator,
                created_at=self._clock(),
            )
            session.add(row)
            return _key(row), token

    def all(self) -> list[StoredKey]:
        """Every key, also the revoked, oldest first."""
        with self._database.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            return [StoredKey(_key(row), row.salt, row.hash) for row in rows]

    def revoke(self, name_or_id: str) -> Key:
        """Refuse a key from now on (running gateways notice within seconds); its jobs stay.

        Raises:
            InvalidRequest: no key that is still valid has this name or id.
        """
        with self._database.write() as session:
            row = _named(session, name_or_id) or session.get(ApiKeyRow, name_or_id)
            if row is None or row.revoked_at is not None:
                raise InvalidRequest(f"no valid key is called {name_or_id!r}; `stillmotion keys list` names them")
            row.revoked_at = self._clock()
            return _key(row)


def _named(session: Session, name: str) -> ApiKeyRow | None:
    """The valid key of this name; a revoked key's name may be given again."""
    query = select(ApiKeyRow).where(ApiKeyRow.name == name, ApiKeyRow.revoked_at.is_(None))
    return session.scalars(query).first()


def _check(name: str, weight: float, per_minute: int | None, max_jobs: int | None) -> None:
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise InvalidRequest("a key's name must be 1 to 100 printable characters", param="name")
    if not math.isfinite(weight) or not 0 < weight <= MAX_WEIGHT:
        raise InvalidRequest(f"weight must be above 0 and at most {MAX_WEIGHT:g}, not {weight}", param="weight")
    for option, value in (("per_minute", per_minute), ("max_jobs", max_jobs)):
        if value is not None and not 1 <= value <= 1_000_000:
            raise InvalidRequest(f"{option} must be from 1 to 1000000, not {value}", param=option)


def _key(row: ApiKeyRow) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        weight=row.weight,
        per_minute=row.per_minute,
        max_jobs=row.max_jobs,
        operator=row.operator,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )


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
        shared: where rates are counted together with other gateways; None: they are counted here.
    """

    def __init__(
        self, store: KeyStore, clock: Callable[[], float] = time.monotonic, shared: SharedBuckets | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._shared = shared
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
        token = None if bearer is None else parse(bearer)
        if token is None:
            return None
        stored = self._keys.get(token.key_id)
        right = is_right(token, None if stored is None else (stored.salt, stored.hash))
        if stored is None or not right or stored.key.revoked_at is not None:
            return None
        return Caller(stored.key)

    async def take(self, caller: Caller) -> float:
        """Count one submission: 0.0 if it may come in, else seconds until the next may."""
        key = caller.key
        if key is None or key.per_minute is None:
            return 0.0
        if self._shared is not None:
            return await run_in_thread(self._shared.take, key.id, key.per_minute)
        now = self._clock()
        return self._bucket(key.id, key.per_minute, now).take(now)

    async def charge(self, caller: Caller, more: int) -> None:
        """Count so many more for one submission that held many: the next may come when they are paid for."""
        key = caller.key
        if key is None or key.per_minute is None:
            return
        if self._shared is not None:
            await run_in_thread(self._shared.charge, key.id, key.per_minute, more)
            return
        now = self._clock()
        self._bucket(key.id, key.per_minute, now).charge(more, now)

    def _bucket(self, key_id: str, per_minute: int, now: float) -> Bucket:
        bucket = self._buckets.get(key_id)
        if bucket is None or bucket.capacity != per_minute:
            bucket = self._buckets[key_id] = Bucket.per_minute(per_minute, now)
        return bucket

    async def _refresh(self) -> None:
        if self._clock() - self._read_at < _FRESH_S:
            return
        async with self._reading:
            if self._clock() - self._read_at < _FRESH_S:
                return
            stored_keys = await run_in_thread(self._store.all)
            self._keys = {stored.key.id: stored for stored in stored_keys}
            self._read_at = self._clock()
