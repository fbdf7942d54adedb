"""One role and one database per service; none may enter another's.

Made before a server's first start. What is missing later is added by a process of its own (:func:`main`), so that
the supervisor, which stays, need not load the database's client.
"""

import asyncio
import errno
import hashlib
import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from elearn.up.errors import HomeError, StartError
from elearn.up.files import write_atomically

SAFE_PASSWORD = re.compile(r"[A-Za-z0-9_-]{16,}")
"""A password that nothing has to quote."""
_MODULE = "elearn.up.databases"


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to provide, and whose rights to use for it."""

    superuser_url: str
    passwords: dict[str, str]


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why it could not be provided."""

    state: str
    """PostgreSQL's SQLSTATE, empty where it did not get so far."""
    message: str


def url(user: str, password: str, port: int, database: str) -> str:
    """The address of a database on this machine."""
    return f"postgresql://{user}:{password}@127.0.0.1:{port}/{database}"


def record(data: Path, passwords: Mapping[str, str]) -> tuple[Path, bytes]:
    """The file within a data directory, and its content, by which a start knows that nothing is left to do."""
    digest = hashlib.sha256(msgspec.json.encode(passwords, order="sorted"))
    return data / "elearn-provided", digest.hexdigest().encode()


async def ensure(superuser_url: str, passwords: Mapping[str, str], data: Path, timeout: float = 60.0) -> None:
    """Have each service of ``passwords`` a role and a database of its own, on the running server of ``data``.

    It is so already unless a service is new or a password has changed.

    Args:
        timeout: seconds.

    Raises:
        HomeError: no room, or the superuser's password is another than ours.
        StartError: PostgreSQL refused.
    """
    path, done = record(data, passwords)
    if path.exists() and path.read_bytes() == done:
        return
    request = msgspec.json.encode(Request(superuser_url=superuser_url, passwords=dict(passwords)))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", f"import sys, {_MODULE}; sys.exit({_MODULE}.main())"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate(request)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if output:
        raise _explained(msgspec.json.decode(output, type=Refusal))
    if process.returncode != 0:
        raise StartError("PostgreSQL could not be set up; see the supervisor's log")
    write_atomically(path, done)


def _explained(refusal: Refusal) -> HomeError | StartError:
    said = refusal.message.splitlines()[0]
    if refusal.state == "53100" or os.strerror(errno.ENOSPC) in said:
        return HomeError(f"no space left for PostgreSQL ({said}): make room, or choose another home with --home")
    if refusal.state == "28P01":
        return HomeError("PostgreSQL has another password than secrets.json: put the file's older copy back")
    return StartError(f"PostgreSQL refused to be set up: {said}")


def statements(
    passwords: Mapping[str, str], roles: Collection[str], databases: Collection[str], options: str = ""
) -> list[str]:
    """What gives each service of ``passwords`` a role and a database of its own; repeating it is harmless.

    Args:
        roles, databases: those that are there.
        options: added to the creation of databases.

    Raises:
        ValueError: a name or password that would have to be quoted.
    """
    revoke = "REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC"
    found = [revoke.format(database) for database in ("postgres", "template1")]
    for name, password in passwords.items():
        if not name.isidentifier() or not SAFE_PASSWORD.fullmatch(password):
            raise ValueError(f"unusable role name or password for {name!r}")
        verb = "ALTER" if name in roles else "CREATE"
        found.append(f"{verb} ROLE {name} LOGIN PASSWORD '{password}'")
        if name not in databases:
            found.append(f"CREATE DATABASE {name} OWNER {name} {options}".rstrip())
        found.append(revoke.format(name))
    return found


async def provision(superuser_url: str, passwords: Mapping[str, str]) -> None:
    """Carry out :func:`statements` on a running server.

    Raises:
        asyncpg.PostgresError: it was refused.
    """
    import asyncpg

    connection = await asyncpg.connect(superuser_url, timeout=30)
    try:
        roles = {str(row[0]) for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        databases = {str(row[0]) for row in await connection.fetch("SELECT datname FROM pg_database")}
        for statement in statements(passwords, roles, databases):
            await connection.execute(statement)
    finally:
        await connection.close()


def main() -> int:
    """Provide what the standard input asks for; a refusal goes to the standard output."""
    import asyncpg

    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        asyncio.run(provision(request.superuser_url, request.passwords))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        state = str(getattr(error, "sqlstate", "") or "")
        refusal = Refusal(state=state, message=str(error) or type(error).__name__)
        sys.stdout.buffer.write(msgspec.json.encode(refusal))
        return 1
    return 0
