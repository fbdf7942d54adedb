"""What every job cloud must do: one suite for the fake and the real ones."""

import asyncio
import contextlib
import hashlib
import io
import os
import signal
import stat
import tarfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import NamedTuple

import pytest

from services.registry.cloud.local import LocalJobs
from services.registry.cloud.port import (
    Gone,
    JobCloud,
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
from shared.contracts.common import CHUNK_BYTES
from shared.contracts.datastore import LocalVolume, Volume
from shared.errors import Internal
from shared.local.processes import LocalProcesses, end_all, processes_root
from tests.contract.job_cloud_fake import FakeJobs
from tests.contract.job_cloud_models import write_saved_model
from tests.support.kube_registry import SOURCE, kubernetes_jobs

KEY = Key("default", "digits", 1)
JOB = Job(KEY, 1)


class Bench(NamedTuple):
    cloud: JobCloud
    home: Path
    data: Path
    source: Volume | None = None

    async def store(self) -> Path:
        volume = await self.cloud.volume(KEY.project)
        assert isinstance(volume, LocalVolume)
        return Path(volume.path)

    def ask(self, path: str = "export", job: Job = JOB) -> SaveJob:
        volume = self.source or LocalVolume(path=str(self.data))
        return SaveJob(job=job, volume=volume, path=path, shown=f"{path} in datastore runs")


@pytest.fixture(params=["fake", "local", "kubernetes"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Bench, None]:
    async for each in _bench(request.param, tmp_path):
        yield each


@pytest.fixture
async def local(tmp_path: Path) -> AsyncGenerator[Bench, None]:
    async for each in _bench("local", tmp_path):
        yield each


async def _bench(kind: str, tmp_path: Path) -> AsyncGenerator[Bench, None]:
    home, data = tmp_path.resolve() / "home", tmp_path.resolve() / "data"
    data.mkdir()
    if kind == "fake":
        yield Bench(FakeJobs(), home, data)
        return
    if kind == "kubernetes":
        async with kubernetes_jobs(home, data) as (jobs, _, _, _):
            yield Bench(jobs, home, data, SOURCE)
        return
    yield Bench(LocalJobs(home=home, store=home / "models"), home, data)
    await asyncio.to_thread(end_all, home, 1.0)


async def outcome(cloud: JobCloud, job: Job = JOB) -> Observation:
    """What has become of a job, once it has ended."""
    async with asyncio.timeout(30), contextlib.aclosing(cloud.watch()) as watch:
        async for seen in watch:
            if not isinstance(seen, Running | Gone | Synced) and seen.job == job:
                return seen
    raise AssertionError("the watch ended")


async def saved(bench: Bench, path: str = "export", job: Job = JOB) -> Facts:
    await bench.cloud.save(bench.ask(path, job))
    seen = await outcome(bench.cloud, job)
    assert isinstance(seen, Succeeded), seen
    return seen.facts


async def refused(bench: Bench, path: str = "export") -> str:
    await bench.cloud.save(bench.ask(path))
    seen = await outcome(bench.cloud)
    assert isinstance(seen, Refused), seen
    await bench.cloud.remove(KEY)
    return seen.reason


async def download(cloud: JobCloud, *, length: int = CHUNK_BYTES) -> bytes:
    data = b""
    while True:
        chunk = await cloud.open_archive(KEY, offset=len(data), length=length)
        assert chunk.offset == len(data)
        data += chunk.data
        if chunk.end:
            assert chunk.total == len(data)
            return data


async def test_a_save_and_its_archive(bench: Bench) -> None:
    folder = write_saved_model(bench.data / "export")
    facts = await saved(bench)
    assert facts.files == 3
    assert facts.size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    data = await download(bench.cloud)
    assert facts.archive_size == len(data)
    assert facts.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert await download(bench.cloud, length=700) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [
            "assets",
            "saved_model.pb",
            "variables",
            "variables/variables.data-00000-of-00001",
            "variables/variables.index",
        ]
        member = tar.extractfile("variables/variables.index")
        assert member is not None
        assert member.read() == b"index"
        assert all((each.uid, each.mtime) == (0, 0) for each in tar.getmembers())


async def test_a_save_asked_twice_is_one(bench: Bench) -> None:
    write_saved_model(bench.data / "export")
    facts = await saved(bench)
    assert await saved(bench) == facts


async def test_finish_forgets_the_job_and_keeps_the_version(bench: Bench) -> None:
    write_saved_model(bench.data / "export")
    await saved(bench)
    for _ in range(2):
        await bench.cloud.finish(JOB)
    async with asyncio.timeout(5), contextlib.aclosing(bench.cloud.watch()) as watch:
        async for seen in watch:
            assert isinstance(seen, Synced)
            break
    assert (await bench.cloud.open_archive(KEY, offset=0, length=1)).data


async def test_remove_leaves_nothing(bench: Bench) -> None:
    write_saved_model(bench.data / "export")
    await saved(bench)
    for _ in range(2):
        await bench.cloud.remove(KEY)
    with pytest.raises(Internal):
        await bench.cloud.open_archive(KEY, offset=0, length=1)


async def test_the_watch_tells_changes(bench: Bench) -> None:
    write_saved_model(bench.data / "export")
    async with asyncio.timeout(30), contextlib.aclosing(bench.cloud.watch()) as watch:
        assert isinstance(await anext(watch), Synced)
        await bench.cloud.save(bench.ask())
        while isinstance(seen := await anext(watch), Running):
            assert seen.job == JOB
        assert isinstance(seen, Succeeded)
        await bench.cloud.finish(JOB)
        assert await anext(watch) == Gone(job=JOB)


async def test_what_is_not_a_saved_model_is_refused(bench: Bench) -> None:
    (bench.data / "export").mkdir()
    assert "export in datastore runs is not a SavedModel" in await refused(bench)


# -- the local cloud alone ---------------------------------------------------------------------------


async def test_local_facts_and_files(local: Bench) -> None:
    write_saved_model(local.data / "export")
    facts = await saved(local)
    assert facts.framework == "tensorflow 2.21.0"
    assert [signature.name for signature in facts.signatures] == ["serving_default"]
    tensor = facts.signatures[0].inputs[0]
    assert (tensor.name, tensor.dtype, tensor.shape) == ("image", "float32", (-1, 64))
    version = (await local.store()) / local.cloud.path(KEY)
    assert version == (await local.store()) / "default" / "digits" / "1"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in version.rglob("*") if path.is_file()}
    assert modes == {0o444}
    await local.cloud.finish(JOB)
    assert list(((await local.store()) / ".staging").iterdir()) == []
    assert list((local.home / "registry" / "jobs").iterdir()) == []
    await local.cloud.remove(KEY)
    assert [path for path in (await local.store()).rglob("*") if path.is_file()] == []
    assert not ((await local.store()) / "default").exists()


async def test_local_refusals_in_one_sentence(local: Bench) -> None:
    data = local.data
    (data / "file").write_text("")
    (data / "pbtxt").mkdir()
    (data / "pbtxt" / "saved_model.pbtxt").write_text("")
    (data / "damaged").mkdir()
    (data / "damaged" / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    (data / "empty").mkdir()
    (data / "empty" / "saved_model.pb").write_bytes(b"")
    (data / "away").symlink_to("/etc")
    for name in ("leads-out", "pipe", "to-folder", "dangling"):
        write_saved_model(data / name)
    (data / "leads-out" / "variables" / "secret").symlink_to("/etc/passwd")
    os.mkfifo(data / "pipe" / "assets" / "pipe")
    (data / "to-folder" / "link").symlink_to("variables")
    (data / "dangling" / "link").symlink_to("nothing")
    for path, words in (
        ("nothing", "there is no such folder"),
        ("file", "is not a folder"),
        ("pbtxt", "text form"),
        ("damaged", "damaged"),
        ("empty", "holds no graph"),
        ("away", "leads outside"),
        ("../data", "leads out"),
        ("leads-out", "variables/secret is a symbolic link that leads out of the folder"),
        ("pipe", "assets/pipe can't be kept: it is a pipe"),
        ("to-folder", "link is a symbolic link to a folder"),
        ("dangling", "link is a symbolic link to what is not there"),
    ):
        reason = await refused(local, path)
        assert words in reason
        assert "\n" not in reason
    assert [path for path in (await local.store()).rglob("*") if path.is_file()] == []


async def test_local_links_to_files_inside_are_followed(local: Bench) -> None:
    folder = write_saved_model(local.data / "export")
    (folder / "assets" / "vocabulary").symlink_to("../variables/variables.index")
    facts = await saved(local)
    kept = (await local.store()) / local.cloud.path(KEY) / "assets" / "vocabulary"
    assert facts.files == 4
    assert not kept.is_symlink()
    assert kept.read_bytes() == b"index"


async def test_local_names_of_all_kinds(local: Bench) -> None:
    folder = write_saved_model(local.data / "export")
    (folder / "assets" / ("ü" * 60 + " name")).write_text("1")
    (folder / "assets" / "deep").mkdir()
    (folder / "assets" / "deep" / ("x" * 200)).write_text("2")
    facts = await saved(local)
    data = await download(local.cloud, length=4096)
    assert facts.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert "assets/" + "ü" * 60 + " name" in tar.getnames()
        assert "assets/deep/" + "x" * 200 in tar.getnames()


async def test_local_job_survives_the_service_and_its_own_death(local: Bench) -> None:
    write_saved_model(local.data / "export")
    slow = local.data / "export" / "variables" / "big"
    slow.write_bytes(bytes(256 * 1024 * 1024))
    await local.cloud.save(local.ask())
    processes = LocalProcesses(processes_root(local.home, "registry"))
    assert await processes.signal("save.default.digits.1.1", signal.SIGKILL)
    again = LocalJobs(home=local.home, store=local.home / "models")  # as after a restart of the service
    seen = await outcome(again)
    assert isinstance(seen, Lost)
    assert "signal 9" in seen.reason
    slow.unlink()
    await again.finish(JOB)
    assert not ((await local.store()) / "default").exists()
    staging = (await local.store()) / ".staging"
    assert not staging.exists() or list(staging.iterdir()) == []
    await again.save(local.ask(job=Job(KEY, 2)))
    assert isinstance(await outcome(again, Job(KEY, 2)), Succeeded)


async def test_local_attempt_after_one_that_had_published(local: Bench) -> None:
    write_saved_model(local.data / "export")
    facts = await saved(local)
    await local.cloud.finish(JOB)
    (local.data / "export" / "saved_model.pb").unlink()  # the source is no longer needed
    assert await saved(local, job=Job(KEY, 2)) == facts


async def test_local_damage_in_the_store_is_said(local: Bench) -> None:
    write_saved_model(local.data / "export")
    await saved(local)
    file = (await local.store()) / local.cloud.path(KEY) / "variables" / "variables.data-00000-of-00001"
    file.unlink()
    with pytest.raises(Internal, match="can't be read"):
        await download(local.cloud)
    file.write_bytes(b"short")
    with pytest.raises(Internal, match="too short"):
        await download(local.cloud)
