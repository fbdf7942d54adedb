"""PostgreSQL for a room: pool, transactions, migrations, and the one connection of the leader."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import asyncpg
import structlog

from shared.errors import Invalid, StorageFull, Unavailable
from shared.supervise import Wake

_log = structlog.get_logger(__name__)

_AWAY: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a rollback meets on a connection that was lost within a statement
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
_SHARED_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_STATEMENT_TIMEOUT: Final = 10.0
_LEADER_CHECK: Final = 1.0
_TRY_TO_LEAD: Final = "SELECT pg_try_advisory_lock(hashtext('elearn leader'))"


@contextlib.contextmanager
def mapped_errors() -> Iterator[None]:
    """asyncpg's errors as ours: a server that is away, a full disk, a NUL in a text or a number out of range."""
    try:
        yield
    except asyncpg.DiskFullError as error:
        what = str(error).splitlines()[0]  # the others are hints of the database's own
        raise StorageFull(f"the database's disk is full: {what}; free some space and try again") from error
    except asyncpg.DataError as error:
        raise Invalid(f"this can't be kept in a database: {str(error).splitlines()[0]}") from error
    except _AWAY as error:
        _log.warning("database error", error=repr(error))
        raise Unavailable("the database is away; try again") from error


class Transaction:
    """An open transaction; statements given here commit or vanish together."""

    def __init__(self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]") -> None:
        self._connection = connection

    async def execute(self, sql: str, *args: object) -> str:
        """Run a statement; answers PostgreSQL's status word."""
        with mapped_errors():
            return await self._connection.execute(sql, *args)

    async def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Run a statement once for each row of arguments."""
        with mapped_errors():
            await self._connection.executemany(sql, rows)

    async def fetch(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """All rows of a query."""
        with mapped_errors():
            return await self._connection.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: object) -> asyncpg.Record | None:
        """The first row of a query."""
        with mapped_errors():
            return await self._connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        """The first column of the first row."""
        with mapped_errors():
            return await self._connection.fetchval(sql, *args)

    async def notify(self, channel: str) -> None:
        """Wake who listens on ``channel``, once this transaction has committed."""
        await self.execute("SELECT pg_notify($1, '')", channel)


class Database:
    """A room's own database."""

    def __init__(self, url: str, *, name: str, pool_size: int = 6) -> None:
        self._url = url
        self._name = name
        self._pool_size = pool_size
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect.

        Raises:
            Unavailable: the server is away.
        """
        with mapped_errors():
            self._pool = await asyncpg.create_pool(
                self._url,
                min_size=0,  # an idle room keeps the leader's connection and no other
                max_size=self._pool_size,
                command_timeout=_STATEMENT_TIMEOUT,
                timeout=5,
                max_inactive_connection_lifetime=5,
                reset=_leave_as_it_is,
                server_settings={"application_name": f"elearn-{self._name}"},
            )

    async def close(self) -> None:
        """Disconnect; statements under way have five seconds to end."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()
        self._pool = None

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction that commits at the end of the block, or not at all.

        Raises:
            Unavailable: the server is away; whether a commit under way took place is then unknown.
            StorageFull: its disk is full.
        """
        if self._pool is None:
            raise Unavailable("the database is away; try again")
        pool = self._pool
        with mapped_errors():
            connection = await pool.acquire(timeout=5)
        try:
            transaction = connection.transaction()
            with mapped_errors():
                await transaction.start()
            try:
                yield Transaction(connection)
            except BaseException:
                with contextlib.suppress(*_AWAY):
                    await transaction.rollback()
                raise
            with mapped_errors():
                await transaction.commit()
        finally:
            with contextlib.suppress(*_AWAY):
                await pool.release(connection, timeout=5)

    async def ping(self) -> None:
        """Make sure that the server answers.

        Raises:
            Unavailable: it does not.
        """
        async with asyncio.timeout(3):
            async with self.transaction() as transaction:
                await transaction.fetchval("SELECT 1")

    async def migrate(self, room: Path) -> None:
        """Apply the shared migrations, then the room's, each once, under a lock.

        Raises:
            RuntimeError: a migration that was applied has been edited since.
            Unavailable: the server is away.
        """
        with mapped_errors():
            connection = await asyncpg.connect(self._url, timeout=5, command_timeout=60)
            try:
                await connection.execute("SELECT pg_advisory_lock(hashtext('elearn migrations'))")
                await connection.execute(
                    "CREATE TABLE IF NOT EXISTS schema_migration ("
                    " name text PRIMARY KEY, digest text NOT NULL,"
                    " applied_at timestamptz NOT NULL DEFAULT now())"
                )
                applied = {
                    row["name"]: row["digest"]
                    for row in await connection.fetch("SELECT name, digest FROM schema_migration")
                }
                for prefix, folder in (("shared", _SHARED_MIGRATIONS), ("room", room)):
                    for file in sorted(folder.glob("*.sql")):
                        await _apply(connection, f"{prefix}/{file.name}", file.read_text(), applied)
            finally:
                await connection.close(timeout=5)

    @contextlib.asynccontextmanager
    async def leadership(self, wakes: Mapping[str, Wake]) -> AsyncIterator[asyncio.Event]:
        """Wait until this process leads its room, and stay leader inside the block.

        The leader holds an advisory lock on a connection of its own, which also listens: a
        notification on a channel of ``wakes`` rings its bell. The event that is yielded is set when
        the connection, and leadership with it, is lost.

        Raises:
            Unavailable: the server is away.
        """
        lost = asyncio.Event()
        with mapped_errors():
            connection = await asyncpg.connect(
                self._url,
                timeout=5,
                command_timeout=_STATEMENT_TIMEOUT,
                server_settings={"application_name": f"elearn-{self._name}-leader"},
            )
        try:
            with mapped_errors():
                connection.add_termination_listener(lambda _: lost.set())
                while not await connection.fetchval(_TRY_TO_LEAD):
                    await asyncio.sleep(_LEADER_CHECK)
                for channel, wake in wakes.items():
                    await connection.add_listener(channel, _ringing(wake))
            yield lost
        finally:
            try:
                await connection.close(timeout=2)
            except (*_AWAY, asyncio.CancelledError):
                connection.terminate()


async def _leave_as_it_is(_: object) -> None:
    """Whoever used a connection of the pool left nothing but a transaction in it, which has ended, or is rolled back.

    asyncpg would else ask PostgreSQL after each transaction to forget what a session can hold: a fifth of all trips.
    """


def _ringing(wake: Wake) -> Any:
    def ring(*_: object) -> None:
        wake.ring()

    return ring


async def _apply(
    connection: "asyncpg.Connection[asyncpg.Record]", name: str, sql: str, applied: Mapping[str, str]
) -> None:
    digest = hashlib.sha256(sql.encode()).hexdigest()
    if name in applied:
        if applied[name] != digest:
            raise RuntimeError(f"migration {name} was edited after it had been applied; add a new one instead")
        return
    async with connection.transaction():
        await connection.execute(sql)
        await connection.execute("INSERT INTO schema_migration (name, digest) VALUES ($1, $2)", name, digest)
    _log.info("migration applied", migration=name)
