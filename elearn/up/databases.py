"""One role and one database per service; none may enter another's."""

import re
from collections.abc import Mapping

import asyncpg

_SAFE_PASSWORD = re.compile(r"[A-Za-z0-9_-]{16,}")


def url(user: str, password: str, port: int, database: str) -> str:
    """The address of a database on this machine."""
    return f"postgresql://{user}:{password}@127.0.0.1:{port}/{database}"


async def provision(superuser_url: str, passwords: Mapping[str, str]) -> None:
    """Give each service of ``passwords`` a role and a database that are its own; repeating it is harmless.

    Raises:
        ValueError: a name or password that would have to be quoted.
    """
    for name, password in passwords.items():
        if not name.isidentifier() or not _SAFE_PASSWORD.fullmatch(password):
            raise ValueError(f"unusable role name or password for {name!r}")
    connection = await asyncpg.connect(superuser_url, timeout=30)
    try:
        roles = {str(row[0]) for row in await connection.fetch("SELECT rolname FROM pg_roles")}
        databases = {str(row[0]) for row in await connection.fetch("SELECT datname FROM pg_database")}
        for database in ("postgres", "template1"):
            await connection.execute(f"REVOKE CONNECT, TEMPORARY ON DATABASE {database} FROM PUBLIC")
        for name, password in passwords.items():
            verb = "ALTER" if name in roles else "CREATE"
            await connection.execute(f"{verb} ROLE {name} LOGIN PASSWORD '{password}'")
            if name not in databases:
                await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
            await connection.execute(f"REVOKE CONNECT, TEMPORARY ON DATABASE {name} FROM PUBLIC")
    finally:
        await connection.close()
