"""Webhooks from the outbox to a real receiver: signed, retried for a day, and never to a private address unasked."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stillmotion.webhooks import verify

from serving.jobs.database import Database
from serving.jobs.leases import Leases
from serving.jobs.records import Success, WebhookTarget
from serving.jobs.store import JobStore
from serving.jobs.webhooks import GIVE_UP_S, Deliverer, DeliveryLimits, Outbox, delay_s, receiver_of
from serving.net import AddressPolicy, PublicOnly, networks
from tests.support import shared_tables as shared_tables
from tests.unit.serving.jobs.test_leases import Clock
from tests.unit.serving.jobs.test_transitions import OUTPUT, new_job

standardwebhooks = pytest.importorskip("standardwebhooks")
SECRET = "whsec_" + base64.b64encode(b"the job's own secret").decode()
OWN = "whsec_" + base64.b64encode(b"the server's secret").decode()
LOCAL = AddressPolicy(frozenset({"http"}), networks(["127.0.0.0/8"]))


@dataclass
class Receiver:
    """Answers with `statuses` in turn, then 200; keeps every request."""

    statuses: list[int] = field(default_factory=list)
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        self.seen.append((headers, await reader.readexactly(int(headers["content-length"]))))
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(f"HTTP/1.1 {status} X\r\nLocation: {self.url}/other\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server:
        yield receiver


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    yield database
    database.close()


def complete(database: Database, clock: Clock, url: str, secret: str | None = SECRET, job_id: str = "job_1") -> None:
    store = JobStore(database, clock)
    leases = Leases(database, "one", clock)
    store.create(replace(new_job(job_id), webhook=WebhookTarget(url, secret)), 100)
    job = leases.acquire()
    assert job
    leases.complete(job, Success(OUTPUT, {}))


def deliverer(
    database: Database,
    clock: Clock,
    policy: AddressPolicy = LOCAL,
    secret: str | None = None,
    limits: DeliveryLimits | None = None,
) -> Deliverer:
    return Deliverer(
        Outbox(database, clock), PublicOnly(policy), secret, clock=clock, limits=limits or DeliveryLimits()
    )


async def test_a_completed_job_is_told_and_signed(database: Database, clock: Clock, receiver: Receiver) -> None:
    complete(database, clock, receiver.url)
    delivering = deliverer(database, clock)
    assert await delivering.deliver_due() == 1
    assert await delivering.deliver_due() == 0
    await delivering.stop()
    ((headers, body),) = receiver.seen
    message = verify(body, headers, SECRET, now=clock.now)
    assert (message.type, message.data.id, message.data.status) == ("job.completed", "job_1", "completed")
    # The specification's own library agrees (on the signature; it has no clock to be set).
    theirs = standardwebhooks.Webhook(SECRET)
    stamp = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    assert theirs.sign(headers["webhook-id"], stamp, body.decode()) == headers["webhook-signature"]
    assert "secret" not in json.dumps(message.model_dump(mode="json"))


async def test_the_servers_secret_signs_where_the_job_brought_none(
    database: Database, clock: Clock, receiver: Receiver
) -> None:
    complete(database, clock, receiver.url, secret=None)
    delivering = deliverer(database, clock, secret=OWN)
    await delivering.deliver_due()
    await delivering.stop()
    assert verify(receiver.seen[0][1], receiver.seen[0][0], OWN, now=clock.now).data.id == "job_1"


async def test_a_failure_is_tried_again_later_with_the_same_id(
    database: Database, clock: Clock, receiver: Receiver
) -> None:
    receiver.statuses = [500, 302, 429]
    complete(database, clock, receiver.url)
    delivering = deliverer(database, clock)
    for tried in (1, 2, 3):
        assert await delivering.deliver_due() == 1
        assert await delivering.deliver_due() == 0  # not at once
        clock.now += delay_s(tried, 1.0)
    assert await delivering.deliver_due() == 1
    clock.now += GIVE_UP_S
    assert await delivering.deliver_due() == 0
    await delivering.stop()
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.seen}) == 4


async def test_after_a_day_it_is_given_up(database: Database, clock: Clock, receiver: Receiver) -> None:
    receiver.statuses = [503] * 1000
    complete(database, clock, receiver.url)
    delivering = deliverer(database, clock)
    began, tries = clock.now, 0
    while clock.now < began + 2 * GIVE_UP_S:
        tries += await delivering.deliver_due()
        clock.now += 600
    await delivering.stop()
    assert tries == len(receiver.seen)
    assert 10 < tries < 30
    last = int(receiver.seen[-1][0]["webhook-timestamp"])
    assert GIVE_UP_S / 2 < last - began <= GIVE_UP_S


async def test_gone_ends_it(database: Database, clock: Clock, receiver: Receiver) -> None:
    receiver.statuses = [410]
    complete(database, clock, receiver.url)
    delivering = deliverer(database, clock)
    await delivering.deliver_due()
    clock.now += 3600
    assert await delivering.deliver_due() == 0
    await delivering.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"])
async def test_a_private_address_is_never_called(
    database: Database, clock: Clock, receiver: Receiver, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    complete(database, clock, receiver.url.replace("127.0.0.1", host))
    delivering = deliverer(database, clock, AddressPolicy(frozenset({"http", "https"})))
    await delivering.deliver_due()
    clock.now += 3600
    await delivering.deliver_due()
    await delivering.stop()
    assert receiver.seen == []
    assert "not a public address" in caplog.text or "ConnectError" in caplog.text


async def test_a_server_that_dies_on_the_way_leaves_it_to_the_next(
    database: Database, clock: Clock, receiver: Receiver
) -> None:
    complete(database, clock, receiver.url)
    outbox = Outbox(database, clock)
    assert len(outbox.claim([due.id for due in outbox.due()])) == 1  # and never heard of again
    delivering = deliverer(database, clock)
    assert await delivering.deliver_due() == 0
    clock.now += 121
    assert await delivering.deliver_due() == 1
    await delivering.stop()


async def test_an_unreachable_receiver_does_not_keep_the_others(
    database: Database, clock: Clock, receiver: Receiver
) -> None:
    complete(database, clock, "http://127.0.0.1:1/", job_id="job_1")
    complete(database, clock, receiver.url, job_id="job_2")
    delivering = deliverer(database, clock)
    assert await delivering.deliver_due() == 2
    await delivering.stop()
    assert len(receiver.seen) == 1


async def test_a_dripping_receiver_delays_nobody_else(database: Database, clock: Clock, receiver: Receiver) -> None:
    """It sends a byte of its answer now and then, for ever: other receivers' messages do not wait for it."""
    most, connections = 0, list[asyncio.StreamReader]()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        connections.append(reader)
        try:
            await asyncio.sleep(
                0.05
            )  # the end of a connection that was given up may be read after its successor's start
            most = max(most, sum(not one.at_eof() for one in connections))
            await reader.readuntil(b"\r\n\r\n")
            while not writer.is_closing() and not reader.at_eof():
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.02)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            connections.remove(reader)
            writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        dripping = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        for number in range(6):
            complete(database, clock, dripping, job_id=f"job_slow{number}")
        complete(database, clock, receiver.url, job_id="job_good")
        delivering = deliverer(database, clock, limits=DeliveryLimits(per_receiver=2, deadline_s=1.5))
        await delivering.start()
        began = asyncio.get_running_loop().time()
        while not receiver.seen:
            await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - began < 1.4, "the good one waits for the dripping one"
        await delivering.deliver_due()  # the others have their deadlines, two at once
        assert most == 2
        await delivering.stop()
    rest = Outbox(database, clock)
    assert rest.due() == []
    clock.now += 60
    assert len(rest.due()) == 6, "each is tried again"
    assert rest.due(busy_receivers=[receiver_of(dripping)]) == []
    assert len(rest.due(busy_receivers=[dripping[:-2]])) == 6, "another port's prefix is another receiver"


@given(attempts=st.integers(1, 100), jitter=st.floats(0, 1))
def test_delays_double_within_bounds(attempts: int, jitter: float) -> None:
    assert 5 <= delay_s(attempts, jitter) <= 3 * 3600 * 1.2
    assert delay_s(attempts + 1, 0) == min(2 * delay_s(attempts, 0), 3 * 3600)
