"""How every service runs: the same furniture, the same order of starting and stopping.

A room's ``app.py`` has one function, ``compose(platform, settings) -> Room``, which builds its objects
from the platform's parts; :func:`main` does the rest: settings, logging, database and migrations, bus and
streams, the outbox relay and the room's controllers in the replica that leads, consumers, verbs, health,
signals.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from shared import logs, outbox
from shared.bus import Bus, Connection, Consumer
from shared.bus.consume import run_consumer
from shared.bus.rpc import Handlers, Server
from shared.bus.streams import ensure_streams
from shared.errors import ElearnError, StorageFull, Unavailable
from shared.health import Check, HealthServer
from shared.outbox import Outbox, Relay
from shared.postgres import Database
from shared.settings import ServiceSettings, SettingsError, load
from shared.supervise import Supervisor, Wake

_log = structlog.get_logger(__name__)

S = TypeVar("S", bound=ServiceSettings)
Work = Callable[[], Coroutine[Any, Any, None]]

_SWEEP_EVERY: Final = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Platform:
    """What a room is built on.

    Attributes:
        wake: rung by a notification on the channel ``wake`` of the room's database: whoever changes
            what a controller works on calls ``transaction.notify("wake")``.
    """

    name: str
    database: Database
    bus: Bus
    outbox: Outbox
    wake: Wake


@dataclasses.dataclass(kw_only=True)
class Room:
    """What a room wants run.

    Attributes:
        verbs: what it answers over the bus.
        consumers: what it listens to.
        leading: work that only the leading replica does (controllers), by name; each runs for ever.
        background: work that every replica does, by name; each runs for ever.
        checks: what must hold for it to be ready, besides database and bus.
        close: what to close at the end.
    """

    verbs: Handlers = dataclasses.field(default_factory=dict)
    consumers: tuple[Consumer, ...] = ()
    leading: Mapping[str, Work] = dataclasses.field(default_factory=dict)
    background: Mapping[str, Work] = dataclasses.field(default_factory=dict)
    checks: Mapping[str, Check] = dataclasses.field(default_factory=dict)
    close: tuple[Callable[[], Awaitable[None]], ...] = ()


Compose = Callable[[Platform, S], Awaitable[Room]]


def main(name: str, kind: type[S], compose: Compose[S]) -> None:
    """Run a service until SIGTERM or SIGINT; exits with 1 and one line where it can't.

    With the argument ``migrate`` it only brings the service's database up to date, and ends.
    """
    if sys.argv[1:] not in ([], ["migrate"]):
        sys.exit(f"usage: python -m services.{name} [migrate]")
    try:
        settings = load(kind, os.environ)
    except SettingsError as error:
        sys.exit(f"{name}: {error}")
    logs.configure(name, settings.log_level, settings.log_format)
    module = sys.modules[compose.__module__].__file__
    if module is None:
        raise RuntimeError("compose must live in a file")
    migrations = Path(module).parent / "migrations"
    try:
        if sys.argv[1:]:
            asyncio.run(_migrate(name, settings, migrations))
        else:
            asyncio.run(_run_until_signal(name, settings, compose, migrations))
    except ElearnError as error:
        _log.error("stopped", error=error.detail)
        sys.exit(1)


async def _migrate(name: str, settings: ServiceSettings, migrations: Path) -> None:
    """Bring the database up to date as soon as it answers."""
    database = Database(settings.postgres_url, name=name, pool_size=settings.pool_size)
    try:
        await _patiently("database", lambda: database.migrate(migrations))
    finally:
        await database.close()
    _log.info("migrated")


async def _run_until_signal(name: str, settings: S, compose: Compose[S], migrations: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running = asyncio.create_task(run(name, settings, compose, migrations, stop), name=f"service {name}")
    await running


async def run(
    name: str,
    settings: S,
    compose: Compose[S],
    migrations: Path,
    stop: asyncio.Event,
    *,
    ready: asyncio.Event | None = None,
) -> None:
    """Run a service until ``stop`` is set; ``ready`` is set once it answers."""
    state = _State()
    connection = Connection(settings.nats_url, name)
    database = Database(settings.postgres_url, name=name, pool_size=settings.pool_size)
    checks: dict[str, Check] = {
        "start": state.check,
        "database": database.ping,
        "bus": _bus_check(connection),
    }
    health = HealthServer(settings.health_host, settings.health_port, checks)
    async with contextlib.AsyncExitStack() as stack, Supervisor() as supervisor:
        await health.start()
        stack.push_async_callback(health.stop)
        stack.push_async_callback(database.close)
        stack.push_async_callback(connection.close)
        starting = asyncio.create_task(_open(database, connection, migrations), name=f"opening {name}")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        stack.callback(stopping.cancel)
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return
        starting.result()
        wake, relay_wake = Wake(), Wake()
        platform = Platform(name=name, database=database, bus=Bus(connection), outbox=Outbox(name), wake=wake)
        room = await compose(platform, settings)
        for close in reversed(room.close):
            stack.push_async_callback(close)
        checks.update(room.checks)
        server = Server(connection, name, room.verbs)
        stack.push_async_callback(server.stop)
        relay = Relay(database, connection, relay_wake)
        leading: dict[str, Work] = {
            "outbox relay": relay.run,
            "sweeper": lambda: _sweep(database, settings.outbox_retention_days),
            **room.leading,
        }
        wakes = {outbox.CHANNEL: relay_wake, "wake": wake}
        supervisor.forever(f"leader of {name}", _lead(database, wakes, leading))
        for label, work in room.background.items():
            supervisor.forever(label, work())
        for consumer in room.consumers:
            supervisor.forever(f"consumer {consumer.durable}", run_consumer(connection, database, name, consumer))
        if room.verbs:
            await server.start()
        state.started = True
        if ready is not None:
            ready.set()
        _log.info("ready")
        await supervisor.wait(stop.wait())
        _log.info("stopping")


class _State:
    started = False

    async def check(self) -> None:
        if not self.started:
            raise Unavailable("starting")


def _bus_check(connection: Connection) -> Check:
    async def check() -> None:
        connection.require()

    return check


async def _open(database: Database, connection: Connection, migrations: Path) -> None:
    """Wait for the database and the bus: whoever starts everything at once need not order it."""

    async def open_database() -> None:
        await database.migrate(migrations)
        await database.open()

    async def open_bus() -> None:
        await connection.open()

    async def open_streams() -> None:
        await ensure_streams(connection)

    async with asyncio.TaskGroup() as group:
        group.create_task(_patiently("database", open_database))
        group.create_task(_patiently("bus", open_bus))
    await _patiently("streams", open_streams)


async def _patiently(what: str, attempt: Callable[[], Awaitable[None]]) -> None:
    pause = 0.05
    while True:
        try:
            await attempt()
        except Unavailable as error:
            if pause > 1:
                _log.info("waiting", what=what, error=error.detail)
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)
        else:
            return


async def _lead(database: Database, wakes: Mapping[str, Wake], leading: Mapping[str, Work]) -> None:
    """Do the leader's work whenever this process leads."""
    pause = 0.1
    while True:
        try:
            async with database.leadership(wakes) as lost, Supervisor() as supervisor:
                pause = 0.1
                _log.debug("leading")
                for wake in wakes.values():
                    wake.ring()
                for label, work in leading.items():
                    supervisor.forever(label, work())
                await supervisor.wait(lost.wait())
            _log.warning("no longer leading")
        except (Unavailable, StorageFull) as error:
            _log.info("waiting to lead", error=error.detail)
        await asyncio.sleep(pause)
        pause = min(2.0, pause * 2)


async def _sweep(database: Database, retention_days: float) -> None:
    while True:
        try:
            await outbox.sweep(database, retention_days)
        except (Unavailable, StorageFull) as error:
            _log.info("sweeping later", error=error.detail)
        await asyncio.sleep(_SWEEP_EVERY)
