"""Keys: what is stored of them, who is let in, how often, and when a revoked one stops."""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import InvalidRequest
from serving import keys as secret
from serving.jobs.database import Database
from serving.keys import Bucket, Caller, KeyRing, KeyStore
from tests.support import shared_tables as shared_tables


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/jobs.db")
    yield made
    made.close()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_token_is_parsed_back_and_hides_itself() -> None:
    token = secret.new_token()
    assert secret.parse(str(token)) == token
    assert token.secret not in repr(token)
    assert len(bytes.fromhex(token.secret)) == 32
    assert secret.new_token().secret != token.secret


@pytest.mark.parametrize("text", ["", "sm_", "sm_00_00", "Bearer x", "sm_" + "0" * 12 + "_" + "g" * 64, "x" * 10_000])
def test_what_is_no_key_is_told_at_once(text: str) -> None:
    assert secret.parse(text) is None


def test_only_the_right_secret_is_right() -> None:
    token, salt = secret.new_token(), secret.new_salt()
    stored = (salt, secret.digest(salt, token.secret))
    assert secret.is_right(token, stored)
    last = "0" if token.secret[-1] != "0" else "1"
    assert not secret.is_right(secret.Token(token.key_id, token.secret[:-1] + last), stored)
    assert not secret.is_right(token, (secret.new_salt(), stored[1]))
    assert not secret.is_right(token, None)


def test_an_unknown_id_takes_as_long_as_a_wrong_secret() -> None:
    """Medians, in processor time; a shortcut for unknown ids would be several times faster, not a little."""
    token, salt = secret.new_token(), secret.new_salt()
    stored = (salt, secret.digest(salt, secret.new_token().secret))

    def cost(known: tuple[str, str] | None) -> float:
        took = []
        for _ in range(300):
            before = time.process_time_ns()
            secret.is_right(token, known)
            took.append(time.process_time_ns() - before)
        return statistics.median(took)

    assert 1 / 3 < min(cost(stored) for _ in range(5)) / min(cost(None) for _ in range(5)) < 3


def test_the_database_holds_no_secret(database: Database, tmp_path: Path) -> None:
    _, token = KeyStore(database).create("studio")
    connection = sqlite3.connect(tmp_path / "jobs.db")
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert token.key_id in dump
    assert token.secret not in dump


def test_keys_are_listed_and_revoked_by_name_or_id(database: Database) -> None:
    store = KeyStore(database)
    first, _ = store.create("first", weight=2.5, per_minute=60, max_jobs=3, operator=True)
    second, _ = store.create("second")
    assert [stored.key for stored in store.all()] == [first, second]
    assert (first.weight, first.per_minute, first.max_jobs, first.operator) == (2.5, 60, 3, True)
    assert store.revoke("first").revoked_at is not None
    assert store.revoke(second.id).id == second.id
    with pytest.raises(InvalidRequest, match="no valid key"):
        store.revoke("first")
    assert store.create("first")[0].id != first.id


def test_a_name_belongs_to_one_valid_key(database: Database) -> None:
    store = KeyStore(database)
    store.create("one")
    with pytest.raises(InvalidRequest, match="already"):
        store.create("one")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": " "},
        {"name": "a\nb"},
        {"name": "n", "weight": 0},
        {"name": "n", "weight": float("nan")},
        {"name": "n", "per_minute": 0},
        {"name": "n", "max_jobs": -1},
    ],
)
def test_limits_out_of_range_are_refused(database: Database, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        KeyStore(database).create(**wrong)  # type: ignore[arg-type]
    assert KeyStore(database).all() == []


async def test_the_ring_lets_in_who_has_a_key(database: Database) -> None:
    store, clock = KeyStore(database), Clock()
    ring = KeyRing(store, clock)
    assert await ring.identify(None) == Caller()
    assert (await ring.required()) is False
    key, token = store.create("a")
    clock.now += 3
    assert await ring.identify(str(token)) == Caller(key)
    assert await ring.identify(None) is None
    assert await ring.identify(str(secret.new_token())) is None
    assert await ring.identify(str(secret.Token(key.id, secret.new_token().secret))) is None
    store.revoke("a")
    clock.now += 3
    assert await ring.identify(str(token)) is None
    assert await ring.identify(None) is None, "revoking the last key must not open the server"


async def test_the_ring_counts_each_key_on_its_own(database: Database) -> None:
    store, clock = KeyStore(database), Clock()
    ring = KeyRing(store, clock)
    callers = [Caller(store.create(name, per_minute=2)[0]) for name in "ab"]
    assert [await ring.take(callers[0]) for _ in range(2)] == [0, 0]
    assert await ring.take(callers[0]) == pytest.approx(30)
    assert await ring.take(callers[1]) == 0
    assert await ring.take(Caller()) == 0
    clock.now += 30
    assert await ring.take(callers[0]) == 0


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=200))
def test_a_bucket_never_gives_more_than_its_rate(limit: int, gaps: list[float]) -> None:
    bucket, now, given_out = Bucket.per_minute(limit, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        wait = bucket.take(now)
        given_out += wait == 0
        assert given_out <= limit + now * limit / 60 + 1e-6
        assert wait <= 60 / limit + 1e-9


def test_waiting_as_long_as_told_is_enough() -> None:
    bucket = Bucket.per_minute(7, 0.0)
    now = 0.0
    for _ in range(100):
        wait = bucket.take(now)
        if wait:
            now += wait * (1 + 1e-9)
            assert bucket.take(now) == 0
