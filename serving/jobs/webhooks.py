"""Webhooks: messages go from the outbox to the addresses callers gave, signed the Standard Webhooks way.

A delivery counts when the answer is 2xx. Redirects are not followed. What fails is tried again, ever later, for a
day; 410 Gone and an address this server must not connect to end it at once.

The outbox: webhook messages wait here, written in the same transaction as the event they tell of.

So a message is never lost, and may come twice: a server that dies between the answer and the note of it leaves the
message to the next. All methods block on the database: call them in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx
from sqlalchemy import delete, select, update
from stillmotion.webhooks import sign

from serving.background import run_in_thread
from serving.jobs.database import Database
from serving.jobs.tables import DeliveryRow
from serving.net import AddressRefused

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


_log = logging.getLogger(__name__)
_AT_ONCE: Final = 16
_TIMEOUT_S: Final = 15.0
_GONE: Final = 410


class Deliverer:
    """Delivers what is due, until it is stopped.

    Args:
        outbox: where messages wait.
        transport: connects; `serving.net.PublicOnly` keeps it to public addresses.
        secret: signs messages that have no secret of their own (whsec_...); None where every submission must bring one.
        every_s: seconds between two looks at the outbox.
        clock: Unix seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: httpx.AsyncBaseTransport,
        secret: str | None = None,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox = outbox
        self._client = httpx.AsyncClient(
            transport=transport, timeout=_TIMEOUT_S, headers={"User-Agent": "stillmotion-webhooks"}
        )
        self._secret = secret
        self._every_s = every_s
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look at the outbox."""
        self._task = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """Stop; what is on its way is tried again at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._client.aclose()

    async def deliver_due(self) -> int:
        """Try everything that is due once; how many messages that were."""
        tried = 0
        while messages := await run_in_thread(self._outbox.take, _AT_ONCE):
            tried += len(messages)
            await asyncio.gather(*map(self._deliver, messages))
        return tried

    async def _run(self) -> None:
        while True:
            try:
                await self.deliver_due()
            except Exception:  # noqa: BLE001 - the boundary: the next look may do better
                _log.exception("webhooks could not be delivered; trying again")
            await asyncio.sleep(self._every_s)

    async def _deliver(self, message: Message) -> None:
        reason, for_good = await self._post(message)
        if reason is None:
            await run_in_thread(self._outbox.delivered, message)
            return
        next_at = await run_in_thread(self._outbox.failed, message, for_good=for_good)
        later = "given up" if next_at is None else f"tried again in {next_at - self._clock():.0f} s"
        _log.warning("webhook %s of job %s: %s; %s", message.id, message.job_id, reason, later)

    async def _post(self, message: Message) -> tuple[str | None, bool]:
        """Why a message was not taken (None if it was), and whether trying again is of no use."""
        secret = message.secret or self._secret
        if secret is None:
            return "there is no secret to sign it with; set STILLMOTION_WEBHOOK_SECRET", False
        sent_at = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": sign(secret, message.id, sent_at, message.body),
        }
        try:
            # The answer's body is not read: it may be of any size.
            async with self._client.stream("POST", message.url, content=message.body, headers=headers) as answer:
                status = answer.status_code
        except AddressRefused as error:
            return error.message, True
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"{type(error).__name__}: {error}", False
        return (None if 200 <= status < 300 else f"answered {status}"), status == _GONE
