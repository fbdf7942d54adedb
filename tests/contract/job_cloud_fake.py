"""A job cloud in memory, with knobs: what the registry is tested against besides the real ones."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

from services.registry.archive import Entry, Layout
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
from services.registry.model import Facts, Key
from services.registry.reconcile import Job
from shared.contracts.common import Chunk
from shared.contracts.datastore import LocalVolume, Volume
from shared.errors import Internal


class FakeJobs:
    """Saves at once what lies in a folder, unless ``outcome`` decides otherwise.

    Attributes:
        outcome: what becomes of a job, in place of saving; None leaves it running.
        calls: every call that changes something, in order.
    """

    def __init__(self) -> None:
        self.outcome: Callable[[SaveJob], Observation | None] = self._save
        self.calls: list[str] = []
        self.jobs: dict[Job, Observation] = {}
        self.saved: dict[Key, dict[str, bytes]] = {}
        self._queues: list[asyncio.Queue[Observation]] = []

    async def volume(self, project: str) -> Volume:
        return LocalVolume(path="/fake/store")

    def path(self, key: Key) -> str:
        return str(key)

    async def save(self, job: SaveJob) -> None:
        self.calls.append(f"save {job.job.key} {job.job.attempt}")
        if job.job not in self.jobs:
            self.tell(job.job, self.outcome(job) or Running(job=job.job))

    async def finish(self, job: Job) -> None:
        self.calls.append(f"finish {job.key} {job.attempt}")
        if self.jobs.pop(job, None) is not None:
            self._publish(Gone(job=job))

    async def remove(self, key: Key) -> None:
        self.calls.append(f"remove {key}")
        self.saved.pop(key, None)
        for job in [each for each in self.jobs if each.key == key]:
            del self.jobs[job]
            self._publish(Gone(job=job))

    async def open_archive(self, key: Key, *, offset: int, length: int) -> Chunk:
        if key not in self.saved:
            raise Internal(f"{key} is not there")
        data = archive(self.saved[key])
        part = data[offset : offset + length]
        return Chunk(data=part, offset=offset, total=len(data), end=offset + len(part) >= len(data))

    async def watch(self) -> AsyncGenerator[Observation, None]:
        queue: asyncio.Queue[Observation] = asyncio.Queue()
        self._queues.append(queue)
        try:
            for observation in tuple(self.jobs.values()):
                yield observation
            yield Synced()
            while True:
                yield await queue.get()
        finally:
            self._queues.remove(queue)

    def tell(self, job: Job, observation: Observation) -> None:
        """Let this become of a job."""
        self.jobs[job] = observation
        self._publish(observation)

    def kill(self, job: Job) -> None:
        """Lose a running job."""
        self.tell(job, Lost(job=job, reason="killed"))

    def _publish(self, observation: Observation) -> None:
        for queue in self._queues:
            queue.put_nowait(observation)

    def _save(self, job: SaveJob) -> Observation:
        assert isinstance(job.volume, LocalVolume)
        folder = Path(job.volume.path) / job.path
        if not (folder / "saved_model.pb").is_file():
            return Refused(job=job.job, reason=f"{job.shown} is not a SavedModel")
        files = {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"/" for path in folder.rglob("*")
        }
        self.saved[job.job.key] = files
        data = archive(files)
        sizes = [len(content) for content in files.values() if content != b"/"]
        facts = Facts(
            size=sum(sizes),
            files=len(sizes),
            digest=f"sha256:{hashlib.sha256(data).hexdigest()}",
            archive_size=len(data),
        )
        return Succeeded(job=job.job, facts=facts)


def archive(files: dict[str, bytes]) -> bytes:
    """The tar of files in memory; folders have ``b"/"`` for content."""
    layout = Layout([Entry(path=path, size=-1 if data == b"/" else len(data)) for path, data in files.items()])
    return b"".join(
        piece.data if piece.path is None else files[piece.path][piece.offset : piece.offset + piece.length]
        for piece in layout.pieces(0, layout.size)
    )
