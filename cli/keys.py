"""`stillmotion keys`: who may call the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Json, gateway_settings
from model.errors import InvalidRequest

if TYPE_CHECKING:
    from serving.keys import Key, KeyStore

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
DatabaseUrl = Annotated[
    str | None, typer.Option("--database-url", help="The service's job store. [SQLite in stillmotion-data/]")
]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is; one valid key a name.")],
    weight: Annotated[float, typer.Option(help="Of its share of the engine, against the other keys'.")] = 1.0,
    per_minute: Annotated[int | None, typer.Option(help="Submissions a minute. [no limit]")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Jobs waiting or running at once. [no limit]")] = None,
    operator: Annotated[bool, typer.Option("--operator", help="May read /metrics, which tells of all keys.")] = False,
    database_url: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once; from the first key on, the service answers nobody without one."""
    with _new_or_existing_store(database_url) as store:
        key, token = store.create(name, weight=weight, per_minute=per_minute, max_jobs=max_jobs, operator=operator)
    if as_json:
        typer.echo(json.dumps({**_fields(key), "key": str(token)}, indent=2))
        return
    typer.echo(str(token))
    typer.echo(f"key {key.id} for {key.name}; keep it now, it is not shown again", err=True)


@keys.command("list")
def list_keys(database_url: DatabaseUrl = None, as_json: Json = False) -> None:
    """List the keys, without their secrets."""
    from cli.table import table

    with _store(database_url, create=False) as store:
        listed = [] if store is None else [stored.key for stored in store.all()]
    if as_json:
        typer.echo(json.dumps([_fields(key) for key in listed], indent=2))
        return
    if not listed:
        typer.echo("no keys: anybody who reaches the service may use it", err=True)
        return
    head = ("id", "name", "weight", "per minute", "max jobs", "operator", "created", "revoked")
    rows = [
        (k.id, k.name, k.weight, k.per_minute, k.max_jobs, k.operator, _day(k.created_at), _day(k.revoked_at))
        for k in listed
    ]
    typer.echo(table(head, rows))


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="NAME|ID", help="Which key.")], database_url: DatabaseUrl = None
) -> None:
    """Refuse a key from now on; running services notice within seconds. Its jobs stay."""
    with _store(database_url, create=False) as store:
        if store is None:
            raise InvalidRequest(f"there is no job store yet, so no key {key!r}; `keys create` makes both", param="key")
        revoked = store.revoke(key)
    typer.echo(f"revoked {revoked.id} ({revoked.name})")


@contextmanager
def _new_or_existing_store(database_url: str | None) -> Iterator[KeyStore]:
    """The store; created where there is none."""
    with _store(database_url, create=True) as store:
        assert store is not None
        yield store


@contextmanager
def _store(database_url: str | None, create: bool) -> Iterator[KeyStore | None]:
    """The store; None where it would have to be created and must not."""
    from serving.jobs.database import Database, sqlite_file
    from serving.keys import KeyStore

    url = gateway_settings({} if database_url is None else {"database_url": database_url}).database_url
    file = sqlite_file(url)
    if not create and file is not None and not file.exists() and not any(part.is_file() for part in file.parents):
        yield None
        return
    database = Database(url)
    try:
        yield KeyStore(database)
    finally:
        database.close()


def _fields(key: Key) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(key)


def _day(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
