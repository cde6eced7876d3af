"""The outbox: webhook messages wait here, written in the same transaction as the event they tell of.

So a message is never lost, and may come twice: a server that dies between the answer and the note of it leaves the
message to the next. All methods block on the database: call them in a thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, select, update

from serving.jobs.database import Database
from serving.jobs.tables import DeliveryRow

GIVE_UP_S: Final = 86400.0
_HELD_S: Final = 120.0
"""A message being delivered is nobody else's for so long."""
_FIRST_S: Final = 5.0
_LONGEST_S: Final = 3 * 3600.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message and how often it was tried before; `secret` None: the server's own signs it."""

    id: str
    job_id: str
    url: str
    secret: str | None
    body: bytes
    created_at: float
    attempts: int


def delay_s(attempts: int, jitter: float = 0.0) -> float:
    """Seconds until the next try after `attempts` failed ones: doubled each time, 5 s to 3 hours, up to a fifth more.

    Args:
        jitter: from 0 to 1; so that messages that failed together are not all tried together again.
    """
    return float(min(_FIRST_S * 2.0 ** min(attempts - 1, 30), _LONGEST_S) * (1 + 0.2 * jitter))


class Outbox:
    """Messages that wait.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def take(self, limit: int) -> list[Message]:
        """Messages that are due, at most `limit`, the longest due first: this server's for the next two minutes."""
        now = self._clock()
        due = select(DeliveryRow).where(DeliveryRow.next_at <= now).order_by(DeliveryRow.next_at).limit(limit)
        with self._database.read() as session:
            if session.scalars(due).first() is None:
                return []
        with self._database.write() as session:
            rows = session.scalars(due.with_for_update(skip_locked=True)).all()
            for row in rows:
                row.next_at = now + _HELD_S
            return [
                Message(row.id, row.job_id, row.url, row.secret, row.body.encode(), row.created_at, row.attempts)
                for row in rows
            ]

    def delivered(self, message: Message) -> None:
        """It came; nothing of it is kept."""
        with self._database.write() as session:
            session.execute(delete(DeliveryRow).where(DeliveryRow.id == message.id))

    def failed(self, message: Message, *, for_good: bool = False) -> float | None:
        """It did not come: when it is tried again (Unix seconds), or None if it is given up, a day after its event.

        Args:
            for_good: give it up at once.
        """
        now = self._clock()
        next_at = now + delay_s(message.attempts + 1, random.random())
        with self._database.write() as session:
            if for_good or next_at > message.created_at + GIVE_UP_S:
                session.execute(delete(DeliveryRow).where(DeliveryRow.id == message.id))
                return None
            changed = update(DeliveryRow).where(DeliveryRow.id == message.id)
            session.execute(changed.values(next_at=next_at, attempts=message.attempts + 1))
        return next_at
