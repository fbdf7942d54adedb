"""Outbox to JetStream: the relay's rate over nats-py's own pipelined publish of the same messages."""

import asyncio
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.report import report
from shared.bus import Connection
from shared.bus.streams import ensure_streams
from shared.outbox import Outbox, Relay
from shared.postgres import Database
from shared.supervise import Supervisor, Wake
from tests.support.servers import EmbeddedNats, EmbeddedPostgres

_EVENTS = 20_000
_ROUNDS = 3


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """About as long as a training's event."""

    number: int
    text: str = "x" * 900


async def _fill(database: Database) -> None:
    outbox = Outbox("benchmark")
    async with database.transaction() as transaction:
        for number in range(_EVENTS):
            await outbox.append(transaction, "training", "running", "default", f"t-{number}", Body(number=number))


async def _relay(database: Database, connection: Connection) -> float:
    wake = Wake()
    started = time.perf_counter()
    async with Supervisor() as supervisor:
        supervisor.forever("relay", Relay(database, connection, wake).run())
        while True:
            async with database.transaction() as transaction:
                if not await transaction.fetchval("SELECT count(*) FROM outbox WHERE published_at IS NULL"):
                    return _EVENTS / (time.perf_counter() - started)
            await asyncio.sleep(0.02)


async def _bare(connection: Connection, round_number: int) -> float:
    jetstream = connection.jetstream()
    bodies = [msgspec.json.encode(Body(number=number)) for number in range(_EVENTS)]
    headers = {"ce-id": "x" * 36, "ce-type": "elearn.v1.training.running", "traceparent": "x" * 55}
    started = time.perf_counter()
    for first in range(0, _EVENTS, 1000):
        waiting = [
            await jetstream.publish_async(
                f"elearn.v1.training.running.default.t-{number}",
                bodies[number],
                headers={**headers, "Nats-Msg-Id": f"bare-{round_number}-{number}"},
            )
            for number in range(first, first + 1000)
        ]
        await asyncio.gather(*waiting)
    return _EVENTS / (time.perf_counter() - started)


async def _measure(folder: Path) -> None:
    nats, postgres = EmbeddedNats(folder / "nats"), EmbeddedPostgres(folder / "postgres")
    await asyncio.to_thread(nats.start)
    await asyncio.to_thread(postgres.start)
    try:
        connection = await Connection(nats.url, "benchmark").open()
        await ensure_streams(connection)
        database = Database(postgres.url, name="benchmark")
        await database.migrate(folder)
        await database.open()
        relayed, bare = [], []
        for round_number in range(_ROUNDS):
            bare.append(await _bare(connection, round_number))
            await _fill(database)
            relayed.append(await _relay(database, connection))
        await database.close()
        await connection.close()
    finally:
        await asyncio.to_thread(postgres.stop)
        await asyncio.to_thread(nats.stop)
    ratios = sorted(one / other for one, other in zip(relayed, bare, strict=True))
    report(
        "outbox_to_jetstream",
        wanted="ratio at least 0.5",
        ratio=round(ratios[len(ratios) // 2], 3),
        events_per_second=round(max(relayed)),
        baseline_per_second=round(max(bare)),
    )


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_measure(Path(folder)))


if __name__ == "__main__":
    main()
