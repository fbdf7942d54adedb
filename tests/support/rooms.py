"""Rooms run inside the test's own loop, against real NATS and PostgreSQL.

    async with running_room("registry", Settings, compose, nats_url, database_url) as bus:
        version = await bus.call(model.SAVE, …)

``clean_nats`` is the session's server with the streams of earlier tests removed.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import nats
import pytest

from shared.bus import Bus, Connection
from shared.bus.rpc import Handlers, Server
from shared.bus.streams import ensure_streams
from shared.contracts.event import DEAD_STREAM, STREAM, Event
from shared.errors import Unavailable
from shared.service import Compose, run
from shared.settings import ServiceSettings, load

S = TypeVar("S", bound=ServiceSettings)
T = TypeVar("T")


@pytest.fixture
async def clean_nats(nats_url: str) -> str:
    """NATS without a trace of earlier tests."""
    client = await nats.connect(nats_url)
    jetstream = client.jetstream()
    for stream in (STREAM, DEAD_STREAM):
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await jetstream.delete_stream(stream)
    await client.close()
    return nats_url


@contextlib.asynccontextmanager
async def connected(nats_url: str, name: str = "test") -> AsyncIterator[Connection]:
    """A connection of the test's own, with both streams there."""
    connection = await Connection(nats_url, name).open()
    await ensure_streams(connection)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def running_room(
    name: str,
    kind: type[S],
    compose: Compose[S],
    nats_url: str,
    postgres_url: str,
    environ: Mapping[str, str] | None = None,
    *,
    timeout: float = 20.0,
) -> AsyncIterator[Bus]:
    """A whole room, started as its process would start it; yields a bus to speak to it with.

    Whatever ends the room early fails the test.
    """
    import sys

    settings = load(kind, {"ELEARN_NATS_URL": nats_url, "ELEARN_POSTGRES_URL": postgres_url, **(environ or {})})
    module = sys.modules[compose.__module__].__file__
    assert module is not None
    stop, ready = asyncio.Event(), asyncio.Event()
    room = asyncio.create_task(
        run(name, settings, compose, Path(module).parent / "migrations", stop, ready=ready),
        name=f"room {name}",
    )
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({room, waiting}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if room.done():
            room.result()
            raise AssertionError(f"{name} ended at once")
        assert ready.is_set(), f"{name} was not ready within {timeout} s"
        async with connected(nats_url) as connection:
            yield Bus(connection)
    finally:
        waiting.cancel()
        stop.set()
        async with asyncio.timeout(15):
            await room


@contextlib.asynccontextmanager
async def answering(nats_url: str, service: str, handlers: Handlers) -> AsyncIterator[None]:
    """A stand-in for another room: answers ``handlers`` on the bus."""
    async with connected(nats_url, service) as connection:
        server = Server(connection, service, handlers)
        await server.start()
        try:
            yield
        finally:
            await server.stop()


async def event_where(
    bus: Bus,
    subject: str,
    holds: Callable[[Event], bool] = lambda _: True,
    *,
    since: int = 0,
    timeout: float = 15.0,
) -> Event:
    """The first event on ``subject`` after ``since`` for which ``holds``."""
    async with asyncio.timeout(timeout):
        async with contextlib.aclosing(bus.events(since=since, subject=subject)) as events:
            async for event in events:
                if holds(event):
                    return event
    raise AssertionError("unreachable")


async def until(read: Callable[[], Awaitable[T]], holds: Callable[[T], bool], *, timeout: float = 15.0) -> T:
    """Read again and again until what is read holds; away services are waited for."""
    last: T | None = None
    try:
        async with asyncio.timeout(timeout):
            while True:
                with contextlib.suppress(Unavailable):
                    last = found = await read()
                    if holds(found):
                        return found
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {timeout} s; last seen: {last!r}") from None
