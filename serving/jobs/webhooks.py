"""Webhooks: the transactional outbox, and its deliverer, signed as Standard Webhooks specify.

A message is written in the same transaction as the event it tells of, so none is lost; one may come twice, where a
server dies between the answer and the note of it. A delivery counts when the answer is 2xx. Redirects are not
followed. What fails is tried again with exponential backoff for a day; 410 Gone and an address that this server must
not connect to end it at once.

Deliveries run side by side, each with a total deadline, so many at once a receiver and an owner at most: a receiver
that does not answer delays its own messages only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import httpx2
from sqlalchemy import ColumnElement, delete, func, not_, or_, select, update
from stillmotion.webhooks import sign

from serving.background import Periodic, run_in_thread
from serving.jobs.database import Database
from serving.jobs.tables import DeliveryRow, JobRow
from serving.net import AddressRefused

GIVE_UP_S: Final = 86400.0
_HELD_S: Final = 120.0
"""A claimed message is no other server's for so long."""
_FIRST_S: Final = 5.0
_LONGEST_S: Final = 3 * 3600.0
_PER_OWNER: Final = 200
_WINDOW: Final = 1000
"""Due messages looked at in one round: of one owner, of all."""
_RECEIVER: Final = re.compile(r"[^/?#]*//[^/?#]*")


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


@dataclass(frozen=True, slots=True)
class DueMessage:
    """A message that may be sent now: its receiver (scheme and authority of the URL) and its job's owner."""

    id: str
    receiver: str
    owner: str


def delay_s(attempts: int, jitter: float = 0.0) -> float:
    """Seconds until the next try after `attempts` failed ones: doubled each time, 5 s to 3 hours, up to a fifth more.

    Args:
        jitter: from 0 to 1; so that messages that failed together are not all tried together again.
    """
    return float(min(_FIRST_S * 2.0 ** min(attempts - 1, 30), _LONGEST_S) * (1 + 0.2 * jitter))


def receiver_of(url: str) -> str:
    """What messages share that go to one receiver: the scheme and authority of their URLs, in lower case."""
    match = _RECEIVER.match(url)
    return (url if match is None else match[0]).lower()


class Outbox:
    """Messages that wait. All methods block on the database: call them in a thread.

    Args:
        database: open, with the tables in place.
        clock: Unix seconds.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def due(self, busy_receivers: Collection[str] = (), busy_owners: Collection[str] = ()) -> list[DueMessage]:
        """Messages whose time has come, the longest due first, each owner's in turn.

        Args:
            busy_receivers, busy_owners: whose messages are left out.
        """
        owner = func.coalesce(JobRow.owner, "")
        query = (
            select(DeliveryRow.id, DeliveryRow.url, owner.label("owner"), DeliveryRow.next_at)
            .add_columns(func.row_number().over(partition_by=owner, order_by=DeliveryRow.next_at).label("turn"))
            .outerjoin(JobRow, JobRow.id == DeliveryRow.job_id)
            .where(DeliveryRow.next_at <= self._clock(), owner.not_in(busy_owners))
        )
        ranked = query.where(*(not_(_goes_to(receiver)) for receiver in busy_receivers)).subquery()
        first = select(ranked).where(ranked.c.turn <= _PER_OWNER).order_by(ranked.c.turn, ranked.c.next_at)
        with self._database.read() as session:
            rows = session.execute(first.limit(_WINDOW)).all()
            return [DueMessage(row.id, receiver_of(row.url), row.owner) for row in rows]

    def claim(self, ids: Sequence[str]) -> list[Message]:
        """Take those of these messages that are still due: this server's for the next two minutes."""
        if not ids:
            return []
        now = self._clock()
        due = select(DeliveryRow).where(DeliveryRow.id.in_(ids), DeliveryRow.next_at <= now)
        with self._database.write() as session:
            rows = session.scalars(due.with_for_update(skip_locked=True)).all()
            for row in rows:
                row.next_at = now + _HELD_S
            return [
                Message(row.id, row.job_id, row.url, row.secret, row.body.encode(), row.created_at, row.attempts)
                for row in rows
            ]

    def delivered(self, message: Message) -> None:
        """It came; nothing of it stays."""
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


def _goes_to(receiver: str) -> ColumnElement[bool]:
    """Whether a row's URL has this scheme and authority."""
    url = func.lower(DeliveryRow.url)
    return or_(url == receiver, *(url.startswith(f"{receiver}{end}", autoescape=True) for end in "/?#"))


@dataclass(frozen=True, slots=True)
class DeliveryLimits:
    """Deliveries at once.

    Args:
        total: of all messages.
        per_owner: of one API key's jobs.
        per_receiver: to one scheme and authority.
        deadline_s: seconds for one delivery, from the resolution of its address to the answer's status.
    """

    total: int = 64
    per_owner: int = 32
    per_receiver: int = 4
    deadline_s: float = 15.0


class DeliverySlots:
    """Counts the deliveries under way."""

    def __init__(self, limits: DeliveryLimits) -> None:
        self._limits = limits
        self._total = 0
        self._receivers: Counter[str] = Counter()
        self._owners: Counter[str] = Counter()

    def acquire(self, due: DueMessage) -> bool:
        """Count one more, if that is within the limits."""
        if (
            self._total >= self._limits.total
            or self._receivers[due.receiver] >= self._limits.per_receiver
            or self._owners[due.owner] >= self._limits.per_owner
        ):
            return False
        self._total += 1
        self._receivers[due.receiver] += 1
        self._owners[due.owner] += 1
        return True

    def release(self, due: DueMessage) -> None:
        """Count one less."""
        self._total -= 1
        for counter, key in ((self._receivers, due.receiver), (self._owners, due.owner)):
            counter[key] -= 1
            if not counter[key]:
                del counter[key]

    def busy_receivers(self) -> list[str]:
        """Receivers that can take no more now."""
        return [receiver for receiver, count in self._receivers.items() if count >= self._limits.per_receiver]

    def busy_owners(self) -> list[str]:
        """Owners who can send no more now."""
        return [owner for owner, count in self._owners.items() if count >= self._limits.per_owner]


_log = logging.getLogger(__name__)
_GONE: Final = 410


class Deliverer(Periodic):
    """Delivers what is due.

    Args:
        outbox: where messages wait.
        transport: connects; `serving.net.PublicOnly` keeps it to public addresses.
        secret: signs messages that have no secret of their own (whsec_...); None where every submission must bring one.
        every_s: seconds between two looks at the outbox.
        clock: Unix seconds.
        limits: deliveries at once, and seconds for each.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: httpx2.AsyncBaseTransport,
        secret: str | None = None,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.time,
        limits: DeliveryLimits = DeliveryLimits(),
    ) -> None:
        super().__init__(self._start_due, every_s, "webhooks")
        self._outbox = outbox
        self._limits = limits
        self._client = httpx2.AsyncClient(
            transport=transport, timeout=limits.deadline_s, headers={"User-Agent": "stillmotion-webhooks"}
        )
        self._secret = secret
        self._clock = clock
        self._slots = DeliverySlots(limits)
        self._limited = False
        self._deliveries: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()

    async def stop(self) -> None:
        """Stop; what is on its way is tried again at the next start."""
        await super().stop()
        for task in self._deliveries:
            task.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        await self._client.aclose()

    async def deliver_due(self) -> int:
        """Try everything that is due once; how many messages that were."""
        tried = 0
        while (started := await self._start_due()) or self._deliveries:
            tried += started
            if self._deliveries:
                await asyncio.wait(self._deliveries, return_when=asyncio.FIRST_COMPLETED)
        return tried

    async def _start_due(self) -> int:
        """Begin to deliver what is due and within the limits; how many messages that are."""
        async with self._starting:  # what another call has claimed is among the deliveries when this one begins
            busy = self._slots.busy_receivers(), self._slots.busy_owners()
            due = await run_in_thread(self._outbox.due, *busy)
            starting = {one.id: one for one in due if self._slots.acquire(one)}
            self._limited = len(starting) < len(due) or any(busy)
            try:
                messages = await run_in_thread(self._outbox.claim, list(starting))
            except BaseException:
                for one in starting.values():
                    self._slots.release(one)
                raise
            for message in messages:
                task = asyncio.create_task(self._deliver(message, starting.pop(message.id)), name=message.id)
                self._deliveries.add(task)
                task.add_done_callback(self._deliveries.discard)
            for one in starting.values():  # claimed by another server in the meantime
                self._slots.release(one)
            return len(messages)

    async def _deliver(self, message: Message, due: DueMessage) -> None:
        try:
            reason, for_good = await self._post(message)
            if reason is None:
                await run_in_thread(self._outbox.delivered, message)
                return
            next_at = await run_in_thread(self._outbox.failed, message, for_good=for_good)
            later = "given up" if next_at is None else f"tried again in {next_at - self._clock():.0f} s"
            _log.warning("webhook %s of job %s: %s; %s", message.id, message.job_id, reason, later)
        except Exception:  # noqa: BLE001 - the boundary: it is due again once it is no longer claimed
            _log.exception("webhook %s of job %s: its delivery could not be noted", message.id, message.job_id)
        finally:
            self._slots.release(due)
            if self._limited:  # a message may have waited for this slot
                self.wake()

    async def _post(self, message: Message) -> tuple[str | None, bool]:
        """Why a message was not accepted (None if it was), and whether trying again is of no use."""
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
            # Of the whole delivery: a client's timeouts are of single reads, which a byte a second never meets.
            async with asyncio.timeout(self._limits.deadline_s):
                # The answer's body is not read: it may be of any size.
                async with self._client.stream("POST", message.url, content=message.body, headers=headers) as answer:
                    status = answer.status_code
        except AddressRefused as error:
            return error.message, True
        except TimeoutError:
            return f"no answer within {self._limits.deadline_s:g} s", False
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            return f"{type(error).__name__}: {error}", False
        return (None if 200 <= status < 300 else f"answered {status}"), status == _GONE
