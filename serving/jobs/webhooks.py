"""Webhooks: messages go from the outbox to the addresses callers gave, signed the Standard Webhooks way.

A delivery counts when the answer is 2xx. Redirects are not followed. What fails is tried again, ever later, for a
day; 410 Gone and an address this server must not connect to end it at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

import httpx
from stillmotion.webhooks import sign

from serving.jobs.outbox import Message, Outbox
from serving.jobs.threads import in_thread
from serving.net import AddressRefused

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
        while messages := await in_thread(self._outbox.take, _AT_ONCE):
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
            await in_thread(self._outbox.delivered, message)
            return
        next_at = await in_thread(self._outbox.failed, message, for_good=for_good)
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
