"""What an API key looks like, and what of it is kept.

A key is `sm_ID_SECRET`. The id is public: it names the row, owns jobs, labels metrics. The secret is 256 random bits.

Only SHA-256(salt + secret) is stored. A slow hash (argon2, scrypt) buys time against guessing passwords that people
chose; nobody guesses 256 random bits, with a fast hash or a slow one, and a slow one in front of every request would
be a way to overload the server. The salt keeps equal secrets, which do not occur, from showing. Compared in constant
time; an unknown id costs the same comparison, against a hash that nothing has.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

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
