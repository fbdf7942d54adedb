"""PostgreSQL, which refuses to be root, under each identity that this machine can give it."""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from elearn.up import databases, identity, place, ports, postgres
from elearn.up.identity import Identity
from elearn.up.place import SUPERUSER, Place

PASSWORD = "a-password-for-tests"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")


@pytest.fixture
def account_root() -> Iterator[Path]:
    """A folder that everybody may traverse, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="elearn-test-"))
    folder.chmod(0o755)
    yield folder / "elearn"
    shutil.rmtree(folder)


@contextlib.asynccontextmanager
async def serving(where: Place, log: Path) -> AsyncIterator[tuple[str, int]]:
    """A running server's URL and process id; afterwards it has ended."""
    await postgres.initialise(where, PASSWORD, log)
    postgres.clear_stale(where)
    port = ports.pick()
    url = databases.url(SUPERUSER, PASSWORD, port, "postgres")
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *postgres.server(where, port), env=postgres.environment(), cwd="/", stdout=out, stderr=out
        )
    try:
        await postgres.ready(port)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()
    assert postgres.processes(where.data.resolve()) == []


def uid_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Uid:")).split()[2])


def refused(identity: Identity) -> bool:
    return False


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user needs no other identity")
async def test_root_stays_root_outside_where_namespaces_are_allowed(tmp_path: Path) -> None:
    chosen = identity.current()
    if chosen.kind != "namespace":
        pytest.skip("this kernel or container refuses user namespaces to root")
    private = tmp_path / "only root enters"
    private.mkdir(mode=0o700)
    async with serving(place.place(private, chosen), tmp_path / "log") as (url, pid):
        assert uid_of(pid) == 0
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SHOW data_checksums") == "on"
        await connection.close()


@needs_root
async def test_without_namespaces_another_account_runs_it_elsewhere(tmp_path: Path, account_root: Path) -> None:
    tmp_path.chmod(0o700)
    chosen = identity.current(refused)
    assert chosen.kind == "account"
    where = place.place(tmp_path / "home", chosen, account_root)
    async with serving(where, tmp_path / "log") as (_, pid):
        assert uid_of(pid) == chosen.uid != 0
        assert where.data.stat().st_mode & 0o777 == 0o700
        assert postgres.masters(place.data_folder(tmp_path / "home"))[0].pid == pid


@needs_root
async def test_data_moves_out_when_namespaces_come_to_be_refused_and_stays_there(
    tmp_path: Path, account_root: Path
) -> None:
    folder, log = tmp_path / "home", tmp_path / "log"
    before = identity.current()
    if before.kind != "namespace":
        pytest.skip("this kernel or container refuses user namespaces to root")
    async with serving(place.place(folder, before, account_root), log) as (url, _):
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE kept AS SELECT 7 AS seven")
        await connection.close()
    for chosen in (identity.current(refused), before):
        where = place.place(folder, chosen, account_root)
        assert where.identity.kind == "account"
        async with serving(where, log) as (url, _):
            connection = await asyncpg.connect(url)
            assert await connection.fetchval("SELECT seven FROM kept") == 7
            await connection.close()
    assert not (folder / "data").exists()


async def test_it_starts_again_beside_a_stranger_with_its_old_process_id(tmp_path: Path) -> None:
    where = place.place(tmp_path / "postgres", identity.current())
    async with serving(where, tmp_path / "log"):
        record = (where.data / "postmaster.pid").read_text().splitlines()
    # What a power failure leaves, and then the id belongs to this very test run.
    (where.data / "postmaster.pid").write_text("\n".join([str(os.getpid()), *record[1:]]) + "\n")
    async with serving(where, tmp_path / "log") as (_, pid):
        assert pid != os.getpid()


async def test_an_interrupted_initdb_leaves_nothing(tmp_path: Path) -> None:
    where = place.place(tmp_path / "postgres", identity.current())
    (where.folder / "data.new").mkdir()
    (where.folder / "data.new" / "half").touch()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await postgres.initialise(where, PASSWORD, tmp_path / "log")
    assert list(where.folder.iterdir()) == []
    assert await postgres.initialise(where, PASSWORD, tmp_path / "log")
    assert not await postgres.initialise(where, PASSWORD, tmp_path / "log")
