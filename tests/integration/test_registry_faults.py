"""Save jobs that are lost, late or refused, and a registry that is killed."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from services.registry.app import assemble
from services.registry.cloud.port import Observation, Running, SaveJob
from services.registry.model import MOST_ATTEMPTS, Key
from services.registry.reconcile import Job
from services.registry.settings import Settings
from shared.bus import Bus
from shared.contracts import model as contract
from shared.contracts.model import SaveRequest, SaveVersion, Version, VersionRequest
from shared.errors import Unavailable
from shared.local.processes import LocalProcesses, processes_root
from shared.service import Platform, Room
from tests.contract.job_cloud_fake import FakeJobs
from tests.contract.job_cloud_models import write_saved_model
from tests.integration.test_registry import PROJECT, Others, ended, get, home, others
from tests.support.rooms import connected, running_room, until
from tests.support.servers import FreshDatabase

__all__ = ["home", "others"]

SAVE = SaveVersion(project=PROJECT, model="digits", save=SaveRequest(datastore="runs", path="export"))
KEY = Key(PROJECT, "digits", 1)


@contextlib.asynccontextmanager
async def on_fake(cloud: FakeJobs, nats_url: str, postgres_url: str, **environ: str) -> AsyncIterator[Bus]:
    async def compose(platform: Platform, settings: Settings) -> Room:
        return assemble(platform, settings, cloud)

    compose.__module__ = assemble.__module__  # where the migrations are looked for
    async with running_room("registry", Settings, compose, nats_url, postgres_url, environ) as bus:
        yield bus


async def test_a_job_lost_again_and_again_fails_and_leaves_nothing(
    clean_nats: str, fresh_database: FreshDatabase, others: Others
) -> None:
    cloud = FakeJobs()
    cloud.outcome = lambda _: None
    async with on_fake(cloud, clean_nats, await fresh_database()) as bus:
        await bus.call(contract.SAVE, SAVE)
        for attempt in range(1, MOST_ATTEMPTS + 1):
            job = Job(KEY, attempt)
            await _until_there(cloud, job)
            cloud.kill(job)
        version = await ended(bus)
        assert (version.state, "3 times" in version.reason) == ("failed", True)
        await until(lambda: _jobs(cloud), lambda jobs: not jobs)
    assert f"remove {KEY}" in cloud.calls


async def test_a_late_job_is_ended(clean_nats: str, fresh_database: FreshDatabase, others: Others) -> None:
    cloud = FakeJobs()
    cloud.outcome = lambda _: None
    url = await fresh_database()
    async with on_fake(cloud, clean_nats, url, ELEARN_SAVE_TIMEOUT_SECONDS="0.2") as bus:
        await bus.call(contract.SAVE, SAVE)
        version = await ended(bus)
        assert (version.state, version.reason) == ("failed", "the save did not end within 0.2 s")
        await until(lambda: _jobs(cloud), lambda jobs: not jobs)


async def test_no_more_jobs_at_once_than_allowed(
    clean_nats: str, fresh_database: FreshDatabase, others: Others
) -> None:
    write_saved_model(others.data / "export")
    cloud = FakeJobs()
    running: list[int] = []

    def outcome(job: SaveJob) -> Observation | None:
        running.append(sum(isinstance(each, Running) for each in cloud.jobs.values()))
        return None if job.job.key == KEY else cloud._save(job)

    cloud.outcome = outcome
    async with on_fake(cloud, clean_nats, await fresh_database(), ELEARN_SAVES_AT_ONCE="1") as bus:
        for _ in range(2):
            await bus.call(contract.SAVE, SAVE)
        await until(lambda: _jobs(cloud), lambda jobs: len(jobs) == 1)
        for number in (8, 9):  # cleared away before anything is launched: the second tells that a round is over
            cloud.tell(stray := Job(Key(PROJECT, "stray", number), 1), Running(job=stray))
            await _until_gone(cloud, stray)
        assert (set(cloud.jobs), running) == ({Job(KEY, 1)}, [0])
        cloud.tell(Job(KEY, 1), cloud._save(_ask(others.data)))
        for number in (1, 2):
            assert (await ended(bus, number)).state == "ready"
        await until(lambda: _jobs(cloud), lambda jobs: not jobs)
    assert running == [0, 0]
    assert set(cloud.saved) == {KEY, Key(PROJECT, "digits", 2)}


async def test_a_version_deleted_while_it_is_saved_leaves_nothing(
    clean_nats: str, fresh_database: FreshDatabase, others: Others
) -> None:
    cloud = FakeJobs()
    cloud.outcome = lambda _: None
    async with on_fake(cloud, clean_nats, await fresh_database()) as bus:
        await bus.call(contract.SAVE, SAVE)
        await until(lambda: _jobs(cloud), lambda jobs: len(jobs) == 1)
        await bus.call(contract.DELETE_VERSION, VersionRequest(project=PROJECT, model="digits", number=1))
        await until(lambda: _jobs(cloud), lambda jobs: not jobs)


async def _until_there(cloud: FakeJobs, job: Job) -> None:
    await until(lambda: _jobs(cloud), lambda jobs: job in jobs)


async def _until_gone(cloud: FakeJobs, job: Job) -> None:
    await until(lambda: _jobs(cloud), lambda jobs: job not in jobs)


async def _jobs(cloud: FakeJobs) -> dict[Job, Observation]:
    return dict(cloud.jobs)


def _ask(data: Path) -> SaveJob:
    from shared.contracts.datastore import LocalVolume

    return SaveJob(job=Job(KEY, 1), volume=LocalVolume(path=str(data)), path="export", shown="export")


@contextlib.asynccontextmanager
async def process(environ: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The registry as a process of its own."""
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.registry", env={**os.environ, **environ}
    )
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()


@pytest.mark.slow
async def test_killed_registry_and_killed_jobs(
    clean_nats: str, fresh_database: FreshDatabase, others: Others, home: Path
) -> None:
    write_saved_model(others.data / "export", weights=bytes(48 * 1024 * 1024))
    environ = {
        "ELEARN_HOME": str(home),
        "ELEARN_NATS_URL": clean_nats,
        "ELEARN_POSTGRES_URL": await fresh_database(),
        "ELEARN_LOG_LEVEL": "warning",
    }
    jobs = LocalProcesses(processes_root(home, "registry"))
    async with connected(clean_nats) as connection:
        bus = Bus(connection)
        async with process(environ) as registry:
            await until(lambda: _begin(bus), lambda version: version.number == 1)
            await bus.call(contract.SAVE, SAVE)
            await until(lambda: jobs.list("save."), lambda found: any(each.state == "running" for each in found))
            registry.kill()
            await registry.wait()
            await jobs.signal("save.default.digits.1.1", signal.SIGKILL)
        async with process(environ):
            for number in (1, 2):
                version = await until(
                    partial(get, bus, number),
                    lambda found: found.state != "saving",
                    timeout=40,
                )
                assert version.state == "ready", version.reason
            await until(lambda: jobs.list("save."), lambda found: not found)
    store = home / "models"
    assert sorted(path.name for path in (store / PROJECT / "digits").iterdir()) == ["1", "2"]
    for empty in (".staging", ".trash"):
        assert not (store / empty).exists() or list((store / empty).iterdir()) == []


async def _begin(bus: Bus) -> Version:
    try:
        return await bus.call(contract.SAVE, SAVE)
    except Unavailable:
        await asyncio.sleep(0.1)
        raise
