"""The servers that all integration tests stand on."""

import asyncio
import os
from pathlib import Path

import asyncpg
import nats

from tests.support.servers import EmbeddedNats, EmbeddedPostgres, FreshDatabase


async def test_nats_has_jetstream(nats_url: str) -> None:
    connection = await nats.connect(nats_url, connect_timeout=5)
    assert (await connection.jetstream().account_info()).api is not None
    await connection.close()


async def test_databases_are_separate_and_copied_from_their_template(fresh_database: FreshDatabase) -> None:
    prepared = 0

    async def prepare(url: str) -> None:
        nonlocal prepared
        prepared += 1
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE thing (id uuid PRIMARY KEY DEFAULT gen_random_uuid())")
        await connection.close()

    first, second, empty = (
        await fresh_database(prepare),
        await fresh_database(prepare),
        await fresh_database(),
    )
    assert len({first, second, empty}) == 3
    assert prepared == 1
    connection = await asyncpg.connect(first)
    await connection.execute("INSERT INTO thing DEFAULT VALUES")
    await connection.close()
    connection = await asyncpg.connect(second)
    assert await connection.fetchval("SELECT count(*) FROM thing") == 0
    await connection.close()
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("SELECT to_regclass('thing')") is None
    await connection.close()


async def test_nats_keeps_what_it_acknowledged_when_killed(tmp_path: Path) -> None:
    server = EmbeddedNats(tmp_path)
    await asyncio.to_thread(server.start)
    connection = await nats.connect(server.url)
    await connection.jetstream().add_stream(name="KEPT", subjects=["kept.>"])
    await connection.jetstream().publish("kept.one", b"1")
    await connection.close()
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    connection = await nats.connect(server.url)
    assert (await connection.jetstream().stream_info("KEPT")).state.messages == 1
    await connection.close()
    await asyncio.to_thread(server.stop)


async def test_postgres_keeps_what_it_committed_when_killed(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "with a space")
    await asyncio.to_thread(server.start)
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    await connection.close()
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    connection = await asyncpg.connect(server.url)
    assert await connection.fetchval("SELECT one FROM kept") == 1
    await connection.close()
    await asyncio.to_thread(server.stop)
    assert not Path(f"/proc/{server.pid}").exists()
    assert os.getpid() != server.pid
