"""Outbox, relay, stream, consumers, inbox and dead letters, with real NATS and PostgreSQL."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import msgspec
import nats
import nats.errors
import pytest

from shared import context
from shared.bus import Bus, Connection, Consumer, Message
from shared.bus.consume import run_consumer
from shared.bus.streams import ensure_streams
from shared.contracts.event import STREAM, Event
from shared.errors import Unavailable
from shared.outbox import Outbox, Relay
from shared.postgres import Database, Transaction
from shared.supervise import Supervisor, Wake
from tests.support.rooms import clean_nats, connected, event_where, until
from tests.support.servers import EmbeddedNats, FreshDatabase

T = TypeVar("T")

__all__ = ["clean_nats"]


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    number: int


async def migrate(url: str) -> None:
    await Database(url, name="test").migrate(Path("/nonexistent"))


@pytest.fixture
async def database(fresh_database: FreshDatabase) -> AsyncIterator[Database]:
    async with Database(await fresh_database(migrate), name="test") as database:
        await database.open()
        yield database


@contextlib.asynccontextmanager
async def relaying(database: Database, connection: Connection) -> AsyncIterator[None]:
    wake = Wake()
    async with database.leadership({"outbox": wake}), Supervisor() as supervisor:
        supervisor.forever("relay", Relay(database, connection, wake).run())
        yield


async def append(database: Database, *numbers: int) -> list[str]:
    outbox = Outbox("test")
    async with database.transaction() as transaction:
        return [
            await outbox.append(transaction, "datastore", "ready", "default", "digits", Fact(number=number))
            for number in numbers
        ]


async def numbers_in_stream(connection: Connection, count: int) -> list[int]:
    numbers: list[int] = []
    async with asyncio.timeout(10):
        async for event in Bus(connection).events(since=0):
            numbers.append(msgspec.json.decode(event.data, type=Fact).number)
            if len(numbers) == count:
                return numbers
    raise AssertionError("unreachable")


async def test_events_arrive_in_order_with_cloudevents_headers(clean_nats: str, database: Database) -> None:
    async with connected(clean_nats) as connection, relaying(database, connection):
        with context.caused_by(context.Cause(actor="ada", causation="request-1")):
            identifiers = await append(database, *range(2500))
        assert await numbers_in_stream(connection, 2500) == list(range(2500))
        event = await event_where(Bus(connection), "elearn.v1.datastore.ready.default.digits")
    assert event.id == identifiers[0]
    assert event.source == "elearn/test"
    assert event.type == "elearn.v1.datastore.ready"
    assert event.causation == "request-1"
    assert event.sequence == 1


async def test_a_rolled_back_event_is_never_told(clean_nats: str, database: Database) -> None:
    async with connected(clean_nats) as connection, relaying(database, connection):
        with pytest.raises(ZeroDivisionError):
            async with database.transaction() as transaction:
                await Outbox("test").append(transaction, "datastore", "ready", "default", "a", Fact(number=1))
                raise ZeroDivisionError
        await append(database, 2)
        assert await numbers_in_stream(connection, 1) == [2]


async def test_a_wiped_stream_is_filled_again_from_the_log_and_takes_effect_once(
    tmp_path: Path, database: Database
) -> None:
    server = EmbeddedNats(tmp_path / "nats")
    server.start()
    handled: list[int] = []

    async def handle(_: Transaction, message: Message) -> None:
        handled.append(message.data(Fact).number)

    consumer = Consumer(durable="test", subjects=("elearn.v1.datastore.>",), handle=handle)
    try:
        async with connected(server.url) as connection, Supervisor() as supervisor:
            supervisor.forever("consumer", run_consumer(connection, database, "test", consumer))
            async with relaying(database, connection):
                await append(database, 1, 2, 3)
                await until(lambda: _now(handled), lambda seen: seen == [1, 2, 3])
                server.kill()
                await append(database, 4)
                for folder in (tmp_path / "nats").glob("jetstream"):
                    _remove(folder)
                server.start()
                assert await numbers_in_stream(await _up(connection), 4) == [1, 2, 3, 4]
                await until(lambda: _now(handled), lambda seen: len(seen) >= 4)
    finally:
        server.stop()
    assert handled == [1, 2, 3, 4]


async def test_a_consumer_goes_on_after_a_restart_of_nats(tmp_path: Path, database: Database) -> None:
    server = EmbeddedNats(tmp_path / "nats")
    server.start()
    handled: list[int] = []

    async def handle(_: Transaction, message: Message) -> None:
        handled.append(message.data(Fact).number)

    consumer = Consumer(durable="test", subjects=("elearn.v1.datastore.>",), handle=handle)
    try:
        async with connected(server.url) as connection, Supervisor() as supervisor:
            supervisor.forever("consumer", run_consumer(connection, database, "test", consumer))
            async with relaying(database, connection):
                for number in (1, 2, 3):
                    await append(database, number)
                    await until(lambda: _now(handled), lambda seen: number in seen)  # noqa: B023
                    server.kill()
                    server.start()
    finally:
        server.stop()
    assert handled == [1, 2, 3]


async def test_a_connection_that_is_lost_can_be_closed(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path / "nats")
    server.start()
    try:
        connection = await Connection(server.url, "test").open()
        client = connection.require()
        server.kill()
        await until(lambda: _now(connection.up), lambda up: not up)
        await client.publish("elearn.v1.datastore.ready.default.digits", b"{}")  # kept for when it is back
        await connection.close()
        assert client.is_closed
    finally:
        server.stop()


async def test_a_message_that_can_not_be_handled_becomes_a_dead_letter_and_can_be_sent_again(
    clean_nats: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.bus.consume._DELAYS", (0.01, 0.01, 0.01, 0.01, 0.01))
    broken = True
    handled: list[str] = []
    others: list[str] = []

    async def handle(transaction: Transaction, message: Message) -> None:
        await transaction.execute("CREATE TABLE IF NOT EXISTS effect (id text)")
        await transaction.execute("INSERT INTO effect VALUES ($1)", message.id)
        if broken:
            raise ValueError("no such thing")
        handled.append(message.id)

    async def other(_: Transaction, message: Message) -> None:
        others.append(message.id)

    async with connected(clean_nats) as connection, Supervisor() as supervisor:
        bus = Bus(connection)
        for consumer in (
            Consumer(durable="test", subjects=("elearn.v1.datastore.>",), handle=handle),
            Consumer(durable="other", subjects=("elearn.v1.datastore.>",), handle=other),
        ):
            supervisor.forever(consumer.durable, run_consumer(connection, database, "test", consumer))
        async with relaying(database, connection):
            (identifier,) = await append(database, 1)
            page = await until(bus.dead_letters, lambda page: len(page.items) == 1)
            (letter,) = page.items
            assert letter.consumer == "test"
            assert letter.message_id == identifier
            assert "no such thing" in letter.error
            assert letter.subject == "elearn.v1.datastore.ready.default.digits"
            async with database.transaction() as transaction:
                assert await transaction.fetchval("SELECT to_regclass('effect')") is None
            broken = False
            await bus.resend_dead_letter(letter.sequence)
            await until(lambda: _now(handled), lambda seen: seen == [identifier])
            assert (await bus.dead_letters()).items == ()
    assert others == [identifier]


async def test_a_pipelines_plain_message_is_an_event_too(clean_nats: str) -> None:
    async with connected(clean_nats) as connection:
        client = await nats.connect(clean_nats)
        await client.jetstream().publish("elearn.v1.data.arrived.default.digits", b'{"path": "new", "rows": 3}')
        await client.close()
        event: Event = await event_where(Bus(connection), "elearn.v1.data.arrived.>")
    assert event.type == "elearn.v1.data.arrived"
    assert msgspec.json.decode(event.data) == {"path": "new", "rows": 3}


async def _now(seen: T) -> T:
    return seen


async def _up(connection: Connection) -> Connection:
    await until(lambda: _ensure(connection), bool)
    return connection


async def _ensure(connection: Connection) -> bool:
    await ensure_streams(connection)
    try:
        return (await connection.jetstream().stream_info(STREAM)).state.messages >= 4
    except nats.errors.Error as error:  # it is still reading what it had stored
        raise Unavailable(str(error)) from error


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
