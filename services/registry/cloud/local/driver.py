"""The local job cloud: a save job is a process that outlives the service, its result a file."""

import asyncio
import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Final

import msgspec

from services.registry.cloud.local.archive_reader import ArchiveReader
from services.registry.cloud.port import (
    Gone,
    Lost,
    Observation,
    Refused,
    Running,
    SaveJob,
    Succeeded,
    Synced,
)
from services.registry.model import Key
from services.registry.model_store import ModelStore
from services.registry.reconcile import Job
from services.registry.save_job import job as files
from shared.contracts.common import Chunk
from shared.contracts.datastore import LocalVolume, Volume
from shared.errors import Internal, StorageFull, Unavailable
from shared.local import processes as local

_ID: Final = re.compile(r"save\.([^.]+)\.([^.]+)\.(\d+)\.(\d+)")
_GRACE: Final = 2.0
_INHERITED: Final = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE", "TMPDIR")
_SOURCES: Final = Path(__file__).parents[4]
_LOG_TAIL: Final = 4096


class LocalJobs:
    """Save jobs as processes below ELEARN_HOME.

    Args:
        home: ELEARN_HOME; each job has a folder in ``registry/jobs`` below it while it is needed.
        store: the model store; it is made if it is not there.
    """

    def __init__(self, *, home: Path, store: Path) -> None:
        self._jobs = home.resolve() / "registry" / "jobs"
        self._store = ModelStore(store.resolve())
        self._processes = local.LocalProcesses(local.processes_root(home, "registry"))
        self._archives = ArchiveReader(self._store)

    async def volume(self, project: str) -> Volume:
        """See :class:`services.registry.cloud.port.JobCloud`."""
        return LocalVolume(path=str(self._store.root))

    def path(self, key: Key) -> str:
        """See the port."""
        return self._store.relative(key)

    async def save(self, job: SaveJob) -> None:
        """See the port."""
        if not isinstance(job.volume, LocalVolume):
            raise Internal("the local cloud was handed a volume of another one")
        folder = self._folder(job.job)
        key = job.job.key
        told = files.Job(
            project=key.project,
            model=key.model,
            number=key.number,
            attempt=job.job.attempt,
            volume=job.volume.path,
            path=job.path,
            shown=job.shown,
            store=str(self._store.root),
        )
        await asyncio.to_thread(_prepare, folder, msgspec.json.encode(told), self._store.root)
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        await self._processes.start(
            _id_of(job.job),
            local.ProcessSpec(
                argv=(sys.executable, "-m", "services.registry.save_job", "--job", str(folder / "job.json")),
                env={**environment, "PYTHONPATH": str(_SOURCES)},
                cwd=str(folder),
                log=str(folder / "log"),
                grace=_GRACE,
            ),
        )

    async def finish(self, job: Job) -> None:
        """See the port."""
        await self._forget(_id_of(job))
        with _told():
            await asyncio.to_thread(self._store.clear_staging, job.key, job.attempt)
            await asyncio.to_thread(shutil.rmtree, self._folder(job), ignore_errors=True)

    async def remove(self, key: Key) -> None:
        """See the port."""
        for status in await self._processes.list(_prefix(key)):
            await self._forget(status.id)
        self._archives.forget(key)
        with _told():
            await asyncio.to_thread(self._remove, key)

    async def open_archive(self, key: Key, *, offset: int, length: int) -> Chunk:
        """See the port."""
        return await asyncio.to_thread(self._archives.read, key, offset=offset, length=length)

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """See the port."""
        async with contextlib.aclosing(self._processes.watch()) as changes:
            async for change in changes:
                match change:
                    case local.Synced():
                        yield Synced()
                    case local.Removed(id=id):
                        if job := _job_of(id):
                            yield Gone(job=job)
                    case local.ProcessStatus(id=id):
                        if job := _job_of(id):
                            yield await asyncio.to_thread(self._look, job, change)

    # -- in threads

    def _look(self, job: Job, status: local.ProcessStatus) -> Observation:
        if not status.finished:
            return Running(job=job)
        result = files.read_result(self._folder(job))
        if result is not None and result.facts is not None:
            return Succeeded(job=job, facts=result.facts)
        if result is not None:
            return Refused(job=job, reason=result.refused or "")
        if status.exit_code == files.DISK_FULL_EXIT:
            return Refused(job=job, reason="the disk is full; free some space and save again")
        last = _last_line(self._folder(job) / "log")
        return Lost(job=job, reason=f"the job {status.words()}" + (f" ({last})" if last else ""))

    def _remove(self, key: Key) -> None:
        self._store.remove(key)
        for folder in self._jobs.glob(f"{_prefix(key)}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, job: Job) -> Path:
        return self._jobs / _id_of(job)

    async def _forget(self, id: str) -> None:
        await self._processes.stop(id, grace=_GRACE)
        await self._processes.remove(id)


def _prepare(folder: Path, content: bytes, store: Path) -> None:
    with _told():
        store.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / ".job.json"
        temporary.write_bytes(content)
        temporary.rename(folder / "job.json")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the disk of the model store is full; free some space") from error
        raise Unavailable(f"the model store answers with an error: {error}") from error


def _prefix(key: Key) -> str:
    return f"save.{key.project}.{key.model}.{key.number}."


def _id_of(job: Job) -> str:
    return f"{_prefix(job.key)}{job.attempt}"


def _job_of(id: str) -> Job | None:
    match = _ID.fullmatch(id)
    if match is None:
        return None
    return Job(Key(match[1], match[2], int(match[3])), int(match[4]))


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""
