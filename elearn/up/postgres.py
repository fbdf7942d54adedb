"""PostgreSQL 18 from its wheel: TCP on loopback, passwords, started in the foreground."""

import asyncio
import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from elearn.up import databases, proc
from elearn.up.errors import HomeError, StartError
from elearn.up.files import write_atomically
from elearn.up.place import SUPERUSER, Place
from shared.local.identity import ProcessIdentity, identify

# Sized for five services with small pools on a laptop: few processes, few wake-ups, little memory.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # its path would be limited to 107 bytes
    "max_connections": "80",
    "superuser_reserved_connections": "3",
    "shared_buffers": "24MB",
    "work_mem": "2MB",
    "maintenance_work_mem": "16MB",
    "temp_buffers": "1MB",
    "huge_pages": "off",
    "io_method": "sync",  # its worker processes would only idle
    "max_worker_processes": "0",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "autovacuum_worker_slots": "2",
    "autovacuum_max_workers": "1",
    "autovacuum_naptime": "2min",
    "checkpoint_timeout": "15min",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "wal_writer_delay": "2s",
    "wal_buffers": "1MB",
    "bgwriter_delay": "5s",
    "bgwriter_lru_maxpages": "0",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements may carry passwords and credentials
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

_HBA = "host all all 127.0.0.1/32 scram-sha-256\n"
_NAMES = f"user\0{SUPERUSER}\0database\0{SUPERUSER}\0\0".encode()
_GREETING = struct.pack("!ii", len(_NAMES) + 8, 3 << 16) + _NAMES
"""The first message of protocol 3.0."""


def server(
    where: Place, port: int, settings: Mapping[str, str] = SETTINGS, *, end_with: int | None = None
) -> list[str]:
    """The arguments that start the server in the foreground on 127.0.0.1:``port``."""
    options = ["-p", str(port)]
    for name, value in settings.items():
        options += ["-c", f"{name}={value}"]
    return where.server(options, end_with=end_with)


async def initialise(
    where: Place, password: str, log: Path, services: Mapping[str, str] = MappingProxyType({}), timeout: float = 60.0
) -> bool:
    """Make the data directory unless it is there; it appears whole or not at all.

    Args:
        password: the superuser's.
        log: what is said meanwhile goes there.
        services: the passwords of those that are given a role and a database each.
        timeout: seconds.

    Returns:
        Whether it was made now. The kernel has yet to write it to the disk: see :func:`flush`.

    Raises:
        StartError: it failed; the message holds the complaint.
        HomeError: no room, or no right to write there.
    """
    if (where.data / "PG_VERSION").is_file():
        return False
    making = where.folder / "data.new"
    password_file = where.folder / "password.new"
    await asyncio.to_thread(shutil.rmtree, making, ignore_errors=True)
    try:
        write_atomically(password_file, password.encode())
        if where.identity.kind == "account":
            os.chown(password_file, where.identity.uid, where.identity.gid)
        async with asyncio.timeout(timeout):
            await _run(where.initdb(making, password_file), b"", log)
            if services:
                # Before its first start, so that it is one with the making and no log need be replayed for it.
                made = databases.statements(services, (), (), options="STRATEGY FILE_COPY")
                await _run(where.single(making), "".join(f"{each};\n\n" for each in made).encode(), log)
                path, content = databases.record(making, services)
                path.write_bytes(content)
        (making / "pg_hba.conf").write_text(_HBA)
        making.rename(where.data)
        return True
    except TimeoutError:
        raise StartError(f"initdb took longer than {timeout:.0f} s; see {log}") from None
    except OSError as error:
        raise HomeError(f"can't make PostgreSQL's data directory: {error}") from error
    finally:
        password_file.unlink(missing_ok=True)
        if making.exists():
            await asyncio.to_thread(shutil.rmtree, making, ignore_errors=True)


async def _run(command: Sequence[str], said: bytes, log: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment(),
        cwd="/",
    )
    try:
        output, _ = await process.communicate(said)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    with log.open("ab") as file:
        file.write(output)
    if process.returncode != 0:
        raise _trouble(output)


def flush(where: Place) -> None:
    """Write what lies in the data directory's file system to the disk: once, after it was made. May take long."""
    descriptor = os.open(where.data, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(where.data))
    finally:
        os.close(descriptor)


def _trouble(output: bytes) -> StartError | HomeError:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if re.search("error|fatal|could not|No space", line, re.IGNORECASE)]
    said = (telling or lines[-1:] or ["it said nothing"])[0]
    if any(os.strerror(errno.ENOSPC) in line for line in lines):
        return HomeError(f"no space left for PostgreSQL ({said}): make room, or choose another home with --home")
    return StartError(f"PostgreSQL's data could not be made: {said}")


def environment() -> dict[str, str]:
    """What PostgreSQL's processes see: nothing of the caller's PG* variables or locale."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def processes(data: Path) -> list[ProcessIdentity]:
    """Every process that works in this data directory, the postmaster's children included."""
    found = []
    for pid in proc.all_pids():
        entry = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().strip() == "postgres" and (entry / "cwd").readlink() == data:
                process = identify(pid)
                if process is not None:
                    found.append(process)
    return found


def masters(data: Path) -> list[ProcessIdentity]:
    """Those of :func:`processes` that a signal to end may be sent to: the postmaster, or orphans."""
    found = processes(data)
    pids = {each.pid for each in found}
    return [each for each in found if proc.parent(each.pid) not in pids]


def end_remains(data: Path) -> None:
    """After the postmaster's end, violent or not: kill what is left of it.

    Committed work is in the write-ahead log, so nothing is lost; what is left would keep its successor out.
    """
    remains = processes(data)
    if remains:
        proc.end(remains, 5.0, signal.SIGKILL)


def clear_stale(where: Place) -> None:
    """Before a start: end what is left of a predecessor, and forget its process id.

    The id may meanwhile belong to any other program, and PostgreSQL would refuse to start beside it.
    """
    end_remains(where.data.resolve())
    (where.data / "postmaster.pid").unlink(missing_ok=True)


async def answers(port: int, timeout: float = 5.0) -> bool:
    """Whether the server takes connections now: it does once it asks for a password."""
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(_GREETING)
                return await reader.readexactly(1) == b"R"
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


async def ready(port: int, timeout: float = 30.0) -> None:
    """Wait until the server takes connections.

    Raises:
        TimeoutError: it did not within ``timeout`` seconds.
    """
    async with asyncio.timeout(timeout):
        while not await answers(port, timeout):
            await asyncio.sleep(0.02)
