"""NATS and PostgreSQL as a container of elearn's own image runs them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncpg
import pytest

from elearn.up import binaries, identity, postgres
from elearn.up.bundled import command_of, nats_command, passwords, postgres_command
from elearn.up.errors import StartError
from elearn.up.place import place

SERVICES = ("api", "scheduler", "datastore", "registry", "serving")
KNOWN = {name: f"{name}-0123456789abcdef" for name in ("postgres", *SERVICES)}
VARIABLES = {
    "POSTGRES_PASSWORD": KNOWN["postgres"],
    **{f"ELEARN_POSTGRES_PASSWORD_{name.upper()}": KNOWN[name] for name in SERVICES},
}


def test_every_password_is_asked_for_by_name() -> None:
    assert passwords(VARIABLES) == KNOWN
    with pytest.raises(StartError, match="set ELEARN_POSTGRES_PASSWORD_API, POSTGRES_PASSWORD: "):
        passwords({**VARIABLES, "ELEARN_POSTGRES_PASSWORD_API": "", "POSTGRES_PASSWORD": ""})
    for unsafe in ("short", "quote'quote'quote'quote", "a password of several words"):
        with pytest.raises(StartError, match=r"^ELEARN_POSTGRES_PASSWORD_API: a password is 16 or more"):
            passwords({**VARIABLES, "ELEARN_POSTGRES_PASSWORD_API": unsafe})


def test_there_are_two_of_them() -> None:
    assert nats_command() == [str(binaries.nats_server()), "--config", "/etc/nats/nats.conf"]
    with pytest.raises(StartError, match="usage"):
        command_of(["mysql"])


@contextlib.asynccontextmanager
async def running(command: Sequence[str], port: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*command, env=postgres.environment())
    try:
        async with asyncio.timeout(30):
            while not await postgres.answers(port):
                assert process.returncode is None
        yield
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 30)


async def test_each_service_has_its_database_and_a_second_start_finds_it(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = place(tmp_path / "data", identity.current(), tmp_path / "accounts")
    for start in range(2):
        async with running(await postgres_command(where, KNOWN, port), port):
            for name in SERVICES:
                connection = await asyncpg.connect(
                    host="127.0.0.1", port=port, user=name, password=KNOWN[name], database=name
                )
                if start == 0:
                    await connection.execute("CREATE TABLE kept (number int)")
                assert await connection.fetchval("SELECT count(*) FROM kept") == 0
                await connection.close()
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(
                    host="127.0.0.1", port=port, user="api", password=KNOWN["api"], database="scheduler"
                )
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(host="127.0.0.1", port=port, user="api", password="wrong", database="api")
