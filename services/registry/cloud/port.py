"""What the registry asks of a cloud."""

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from services.registry.model import Facts, Key
from services.registry.reconcile import Job
from shared.contracts.common import Chunk
from shared.contracts.datastore import Volume


class SaveJob(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at saving.

    Attributes:
        volume, path: where the SavedModel lies.
        shown: how messages name that place.
    """

    job: Job
    volume: Volume
    path: str
    shown: str


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """The job is there and has not ended."""

    job: Job


class Succeeded(msgspec.Struct, frozen=True, kw_only=True):
    """The version lies in the store, whole and read-only."""

    job: Job
    facts: Facts


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """It can't be saved, and trying again would not help; nothing of it is in the store."""

    job: Job
    reason: str


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """The job ended without saying how it went: killed, or its machine with it."""

    job: Job
    reason: str


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """The cloud holds nothing of the job any more."""

    job: Job


class Synced(msgspec.Struct, frozen=True):
    """A watch has told all there is; from here on come changes."""


Observation = Running | Succeeded | Refused | Lost | Gone | Synced


class JobCloud(Protocol):
    """Runs save jobs and keeps the model store."""

    async def volume(self, project: str) -> Volume:
        """The model store of a project, as a cloud mounts it."""

    def path(self, key: Key) -> str:
        """Where a version lies, relative to :meth:`volume`."""

    async def save(self, job: SaveJob) -> None:
        """Start a job; idempotent by version and attempt. :meth:`watch` tells how it goes.

        Raises:
            StorageFull: there is no room to start it.
        """

    async def finish(self, job: Job) -> None:
        """End a job, should it still run, and forget it; a version that it saved stays. Idempotent."""

    async def remove(self, key: Key) -> None:
        """Remove a version, its jobs, and all they left; what is gone is success."""

    async def open_archive(self, key: Key, *, offset: int, length: int) -> Chunk:
        """A part of the version's tar; the same bytes at every time.

        Raises:
            Internal: the store no longer holds what was saved.
        """

    def watch(self) -> AsyncGenerator[Observation, None]:
        """Every job that is there, then :class:`Synced`, then every change; never ends."""
