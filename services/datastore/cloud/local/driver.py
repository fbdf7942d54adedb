"""The local storage cloud: a datastore is a folder of this machine, below a root that the operator named.

Deleting a datastore forgets the folder and leaves it where it is, whoever made it; only one that we made
and that is still empty goes too.
"""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Final, ParamSpec, TypeVar

import msgspec

from services.datastore.cloud.local import files
from services.datastore.cloud.local.records import Record, Records
from services.datastore.cloud.local.told import told
from services.datastore.cloud.port import (
    Capabilities,
    Directory,
    Observation,
    Provided,
    Removed,
    Synced,
    Unprovided,
)
from services.datastore.roots import root_problem
from shared.beneath import OutsideError, Tree
from shared.contracts.common import Chunk
from shared.contracts.datastore import DatastoreSpec, FileEntry, LocalVolume, Probe, Volume
from shared.contracts.problem import FieldError
from shared.errors import ElearnError, Internal, Unavailable
from shared.supervise import Wake

P = ParamSpec("P")
T = TypeVar("T")

_THREADS: Final = 16
_TIMEOUT: Final = 9.0


class LocalStorage:
    """Folders of this machine.

    Args:
        home: ELEARN_HOME; records are kept in ``datastore/`` below it.
        roots: folders below which datastores may lie.
        private: names of elearn's own folders in ``home``.
        check_every: seconds between two looks at whether the folders are still there.
    """

    capabilities = Capabilities(
        cloud="local",
        backends=("local",),
        keeps_files="the folder and the files in it stay where they are",
    )

    def __init__(self, *, home: Path, roots: Sequence[Path], private: Sequence[str], check_every: float) -> None:
        self._home = home
        self._roots = tuple(roots)
        self._private = tuple(private)
        self._check_every = check_every
        self._records = Records(home / "datastore")
        self._wakes: set[Wake] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="datastore-files")

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def admit(self, spec: DatastoreSpec) -> list[FieldError]:
        """See :class:`services.datastore.cloud.port.StorageCloud`."""
        problem = await self._in_thread(self._problem, _path_of(spec))
        return [] if problem is None else [FieldError(field="local.path", message=problem)]

    async def provision(self, directory: Directory) -> None:
        """See the port."""
        await self._in_thread(self._provision, directory)
        self._ring()

    async def release(self, uid: str) -> None:
        """See the port."""
        await self._in_thread(self._release, uid)
        self._ring()

    async def watch(self) -> AsyncGenerator[Observation, None]:
        """See the port."""
        wake = Wake()
        self._wakes.add(wake)
        told_before: dict[str, Observation] = {}
        synced = False
        try:
            while True:
                try:
                    observed = await self._in_thread(self._observe)
                except Unavailable:
                    await wake.wait(self._check_every)
                    continue  # what can't be seen has not changed
                for uid in told_before.keys() - observed.keys():
                    del told_before[uid]
                    yield Removed(uid=uid)
                for uid, observation in observed.items():
                    if told_before.get(uid) != observation:
                        told_before[uid] = observation
                        yield observation
                if not synced:
                    synced = True
                    yield Synced()
                await wake.wait(self._check_every)
        finally:
            self._wakes.discard(wake)

    async def probe(self, volume: Volume, *, read_only: bool) -> Probe:
        """See the port."""
        return await self._in_thread(files.probe, _root(volume), read_only=read_only)

    async def list(self, volume: Volume, path: str, *, after: str | None, limit: int) -> list[FileEntry]:
        """See the port."""
        return await self._in_thread(files.list_folder, _root(volume), path, after=after, limit=limit)

    async def stat(self, volume: Volume, path: str) -> FileEntry:
        """See the port."""
        return await self._in_thread(files.stat_path, _root(volume), path)

    async def read(self, volume: Volume, path: str, *, offset: int, length: int) -> Chunk:
        """See the port."""
        return await self._in_thread(files.read_file, _root(volume), path, offset=offset, length=length)

    async def write(self, volume: Volume, path: str, *, upload: str, offset: int, data: bytes, end: bool) -> None:
        """See the port."""
        await self._in_thread(files.write_part, _root(volume), path, upload=upload, offset=offset, data=data, end=end)

    async def delete(self, volume: Volume, path: str) -> None:
        """See the port."""
        await self._in_thread(files.delete_path, _root(volume), path)

    async def sweep(self, volume: Volume, *, older_than: float) -> int:
        """See the port."""
        return await self._in_thread(files.sweep, _root(volume), older_than=older_than)

    # -- in threads

    def _problem(self, path: str) -> str | None:
        real = PurePosixPath(os.path.realpath(path))
        roots = [PurePosixPath(os.path.realpath(root)) for root in self._roots]
        home = PurePosixPath(os.path.realpath(self._home))
        problem = root_problem(real, roots, home, self._private)
        if problem is not None:
            return problem
        for part in (real, *real.parents):
            if os.path.lexists(part):
                if not Path(part).is_dir():
                    return f"{part} is there already and is not a folder"
                if part != real and not os.access(part, os.W_OK | os.X_OK):
                    return f"{real} is not there, and elearn's user has no right to make it in {part}"
                break
        return None

    def _provision(self, directory: Directory) -> None:
        begun = self._records.get(directory.uid)
        if begun is not None and begun.settled:
            return
        asked = _path_of(directory.spec)
        record = begun or Record(
            uid=directory.uid,
            project=directory.project,
            name=directory.name,
            path=os.path.realpath(asked),
            made=not os.path.lexists(os.path.realpath(asked)),
        )
        problem = self._problem(asked)
        if problem is None:
            # Said before it is done: after a crash between the two, a folder of ours is still known for ours.
            self._records.put(record)
            try:
                with told(record.path), Tree("/").directory(record.path.lstrip("/"), make=True):
                    pass
            except ElearnError as error:
                problem = error.detail
        self._records.put(msgspec.structs.replace(record, settled=True, refused=problem or ""))

    def _release(self, uid: str) -> None:
        record = self._records.get(uid)
        if record is None:
            return
        self._records.drop(uid)
        others = {other.path for other in self._records.all().values()}
        if record.made and record.path not in others:
            with contextlib.suppress(OSError):  # not empty: those are the user's files
                Path(record.path).rmdir()

    def _observe(self) -> dict[str, Observation]:
        return {uid: _look(record) for uid, record in self._records.all().items() if record.settled}

    # -- plumbing

    def _ring(self) -> None:
        for wake in self._wakes:
            wake.ring()

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_TIMEOUT):
                return await loop.run_in_executor(self._threads, functools.partial(work, *args, **kwargs))
        except TimeoutError:
            raise Unavailable(f"the storage has not answered for {_TIMEOUT:g} s; try again", retry=10) from None


def _look(record: Record) -> Observation:
    if record.refused:
        return Unprovided(uid=record.uid, reason=record.refused)
    try:
        with told(record.path), Tree(record.path).directory(""):
            note = "the folder was made for it" if record.made else ""
            return Provided(uid=record.uid, volume=LocalVolume(path=record.path), note=note)
    except OutsideError as error:
        return Unprovided(uid=record.uid, reason=str(error))
    except ElearnError as error:
        return Unprovided(uid=record.uid, reason=error.detail)


def _path_of(spec: DatastoreSpec) -> str:
    if spec.local is None:
        raise Internal(f"datastore {spec.name} is not a local one")
    return spec.local.path


def _root(volume: Volume) -> str:
    if not isinstance(volume, LocalVolume):
        raise Internal("the local cloud was handed a volume of another one")
    return volume.path
