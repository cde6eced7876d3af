"""The keys in the job database: made, listed, revoked. A key's secret is shown once, when it is made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from model.errors import InvalidRequest
from serving.jobs.database import Database
from serving.jobs.tables import ApiKeyRow
from serving.keys import secret
from serving.keys.secret import Token

MAX_WEIGHT = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key without its secret.

    Args:
        id: public; owns jobs.
        weight: of its share of the engine, against the other keys'.
        per_minute: submissions a minute, all at once if need be, counted by each gateway; None for no limit.
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
        """Make a key; its token is told here and never again.

        Raises:
            InvalidRequest: the name is taken or empty, or a limit is out of range.
        """
        _check(name, weight, per_minute, max_jobs)
        token, salt = secret.new_token(), secret.new_salt()
        with self._database.write() as session:
            if _named(session, name) is not None:
                raise InvalidRequest(
                    f"there is a key called {name!r} already; choose another name, or revoke it first", param="name"
                )
            row = ApiKeyRow(
                id=token.key_id,
                name=name,
                salt=salt,
                hash=secret.digest(salt, token.secret),
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
