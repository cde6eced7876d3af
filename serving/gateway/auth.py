"""Authentication (API keys as bearer tokens), rate limits, and the Idempotency-Key parameter.

Keys are required from the first one made on (`stillmotion keys create`). What a key does not own does not exist for
it: the store looks for jobs by owner, so another's job is the same 404 as none.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer

from model.errors import StillmotionError
from serving.gateway.errors import Problem
from serving.gateway.services import ServicesDep
from serving.jobs.admission import IdempotentRequest, hash_body
from serving.jobs.database import Database
from serving.keys import Caller, KeyStore

_SCHEME: Final = HTTPBearer(
    auto_error=False, scheme_name="ApiKey", description="needed once the operator has made the first key"
)
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}


async def authenticated(request: Request, services: ServicesDep, _: Annotated[object, Depends(_SCHEME)]) -> Caller:
    """The caller.

    Raises:
        Problem: 401, for a missing, malformed, unknown or revoked key alike.
    """
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    bearer = credentials.strip() if scheme.lower() == "bearer" and credentials.strip() else None
    caller = await services.keys.identify(bearer)
    if caller is None:
        hint = "send `Authorization: Bearer KEY`" if bearer is None else "this key is not valid (any more)"
        raise Problem(401, "unauthenticated", f"an API key is needed here: {hint}", headers=_CHALLENGE)
    request.scope["key_id"] = caller.owner or None
    return caller


CallerDep = Annotated[Caller, Depends(authenticated)]
"""A route's parameter: who calls."""


async def rate_limited(caller: CallerDep, services: ServicesDep) -> Caller:
    """The caller, who may submit now.

    Raises:
        Problem: 429 beyond the key's rate, with Retry-After.
    """
    wait_s = await services.keys.take(caller)
    if wait_s:
        seconds = max(1, math.ceil(wait_s))
        raise Problem(
            429,
            "rate_limited",
            f"this key submits more often than its limit; try again in {seconds} s",
            headers={"Retry-After": str(seconds)},
        )
    return caller


Submitter = Annotated[Caller, Depends(rate_limited)]
"""A submitting route's parameter: who calls, within their rate."""


async def operator_only(caller: CallerDep) -> Caller:
    """The caller, who may see what concerns all keys: anybody while there are none.

    Raises:
        Problem: 403 for a key that is no operator's.
    """
    if caller.key is not None and not caller.key.operator:
        raise Problem(403, "not_operator", "this needs a key made with `stillmotion keys create NAME --operator`")
    return caller


def check_exposed(host: str, *, has_keys: bool, allow_unkeyed: bool) -> None:
    """Refuse to serve strangers without keys.

    Raises:
        StillmotionError: `host` can be reached from other machines, there are no keys, and nobody said that is meant.
    """
    if has_keys or allow_unkeyed or is_loopback(host):
        return
    raise StillmotionError(
        f"{host or 'an empty host'} can be reached from other machines, and no API key is needed to use this server: "
        "make one with `stillmotion keys create NAME`, listen on 127.0.0.1, or say --allow-unkeyed",
        code="unkeyed",
        param="host",
    )


def any_keys(database_url: str) -> bool:
    """Whether a key was ever made in this job store, so that callers need one. Blocks."""
    database = Database(database_url)
    try:
        return bool(KeyStore(database).all())
    finally:
        database.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to listen on; a name counts by all of its addresses."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        if not host:
            return False
    try:
        addresses = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in addresses)


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="a repeat with the same key has no second effect; with another request it is a 409",
    ),
]


_LATER_FIELDS: Final = frozenset({"reuse", "stages", "upscale", "upscaler"})
"""Request fields that came after the first stored hashes: those left out are no part of one, so that a repeat of a
request from before an upgrade is known as one. Whoever adds a field to a request adds its name here."""


def repeat_of(caller: Caller, key: str | None, request: Mapping[str, Any]) -> IdempotentRequest | None:
    """What tells a repeat of this request; None without a key."""
    return None if key is None else IdempotentRequest(caller.owner, key, hash_body(request))


def request_hash(task: str, body: Mapping[str, Any], digests: Sequence[bytes]) -> str:
    """What an Idempotency-Key is stored with: a hash of the request that is the same in every version of the server.

    Args:
        body: the request's fields (JobRequest.body).
        digests: SHA-256 of each picture.
    """
    fields = {name: value for name, value in body.items() if value or name not in _LATER_FIELDS}
    return hash_body({"task": task, **fields}, *digests)
