"""What every storage cloud must do: one suite for the fake and the real ones."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from services.datastore.cloud.local import LocalStorage
from services.datastore.cloud.local.files import UPLOADS
from services.datastore.cloud.port import (
    Directory,
    Observation,
    Provided,
    Removed,
    StorageCloud,
    Synced,
    Unprovided,
)
from shared.contracts.datastore import DatastoreSpec, Local, Volume
from shared.errors import Conflict, Forbidden, Invalid, NotFound, StorageFull
from tests.contract.storage_cloud_fake import FakeStorage
from tests.support.kube_datastores import kubernetes_storage


class Bench(NamedTuple):
    cloud: StorageCloud
    root: Path


def local_storage(tmp_path: Path, *, check_every: float = 60.0) -> LocalStorage:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return LocalStorage(home=home, roots=[tmp_path], private=["postgres"], check_every=check_every)


@pytest.fixture(params=["fake", "local", "kubernetes"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    root = tmp_path.resolve()
    if request.param == "fake":
        yield Bench(FakeStorage(), root)
        return
    if request.param == "kubernetes":
        async with kubernetes_storage(root) as (storage, _, _, _):
            yield Bench(storage, root)
        return
    cloud = local_storage(root)
    yield Bench(cloud, root)
    cloud.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Bench]:
    cloud = local_storage(tmp_path.resolve())
    yield Bench(cloud, tmp_path.resolve())
    cloud.close()


def directory(bench: Bench, uid: str = "u1", *, path: str = "data/digits") -> Directory:
    spec = DatastoreSpec(name="digits", local=Local(path=str(bench.root / path)))
    return Directory(uid=uid, project="default", name="digits", spec=spec)


async def next_of(watch: AsyncGenerator[Observation, None]) -> Observation:
    async with asyncio.timeout(5):
        return await anext(watch)


async def provided(bench: Bench, uid: str = "u1", *, path: str = "data/digits") -> Volume:
    await bench.cloud.provision(directory(bench, uid, path=path))
    async with asyncio.timeout(5):
        async with contextlib.aclosing(bench.cloud.watch()) as watch:
            async for seen in watch:
                if isinstance(seen, Provided) and seen.uid == uid:
                    return seen.volume
    raise AssertionError("the watch ended")


async def write(bench: Bench, volume: Volume, path: str, data: bytes) -> None:
    await bench.cloud.write(volume, path, upload="once", offset=0, data=data, end=True)


# -- directories -------------------------------------------------------------------------------------


async def test_watch_tells_all_then_synced_then_changes(bench: Bench) -> None:
    await bench.cloud.provision(directory(bench))
    watch = bench.cloud.watch()
    assert isinstance(await next_of(watch), Provided)
    assert await next_of(watch) == Synced()
    await bench.cloud.provision(directory(bench, "u2", path="data/other"))
    second = await next_of(watch)
    assert isinstance(second, Provided)
    assert second.uid == "u2"
    await bench.cloud.release("u1")
    assert await next_of(watch) == Removed(uid="u1")


async def test_provision_and_release_twice_are_once(bench: Bench) -> None:
    for _ in range(2):
        await bench.cloud.provision(directory(bench))
    watch = bench.cloud.watch()
    assert isinstance(await next_of(watch), Provided)
    assert await next_of(watch) == Synced()
    for _ in range(2):
        await bench.cloud.release("u1")
    await bench.cloud.release("never there")
    assert await next_of(watch) == Removed(uid="u1")


# -- files -------------------------------------------------------------------------------------------


async def test_a_file_appears_whole_with_its_last_part(bench: Bench) -> None:
    volume = await provided(bench)
    for offset, data, end in ((0, b"abc", False), (3, b"def", False), (6, b"g", True)):
        with pytest.raises(NotFound):
            await bench.cloud.stat(volume, "sub/file")
        await bench.cloud.write(volume, "sub/file", upload="x", offset=offset, data=data, end=end)
    chunk = await bench.cloud.read(volume, "sub/file", offset=0, length=100)
    assert (chunk.data, chunk.total, chunk.end) == (b"abcdefg", 7, True)
    assert [entry.path for entry in await bench.cloud.list(volume, "", after=None, limit=10)] == ["sub"]


async def test_a_part_may_come_twice_but_none_may_be_missing(bench: Bench) -> None:
    volume = await provided(bench)
    for _ in range(2):
        await bench.cloud.write(volume, "file", upload="x", offset=0, data=b"abc", end=False)
    for _ in range(2):
        await bench.cloud.write(volume, "file", upload="x", offset=3, data=b"d", end=False)
    with pytest.raises(Conflict):
        await bench.cloud.write(volume, "file", upload="x", offset=9, data=b"z", end=True)
    with pytest.raises(Conflict):
        await bench.cloud.write(volume, "file", upload="another", offset=3, data=b"z", end=True)
    await bench.cloud.write(volume, "file", upload="x", offset=4, data=b"e", end=True)
    assert (await bench.cloud.read(volume, "file", offset=0, length=100)).data == b"abcde"


async def test_two_uploads_of_one_path_do_not_mix(bench: Bench) -> None:
    volume = await provided(bench)
    await bench.cloud.write(volume, "file", upload="x", offset=0, data=b"xx", end=False)
    await bench.cloud.write(volume, "file", upload="y", offset=0, data=b"yyyy", end=True)
    await bench.cloud.write(volume, "file", upload="x", offset=2, data=b"x", end=True)
    assert (await bench.cloud.read(volume, "file", offset=0, length=100)).data == b"xxx"


async def test_ranges(bench: Bench) -> None:
    volume = await provided(bench)
    await write(bench, volume, "file", b"0123456789")
    middle = await bench.cloud.read(volume, "file", offset=3, length=4)
    assert (middle.data, middle.offset, middle.end) == (b"3456", 3, False)
    tail = await bench.cloud.read(volume, "file", offset=8, length=4)
    assert (tail.data, tail.end) == (b"89", True)
    beyond = await bench.cloud.read(volume, "file", offset=50, length=4)
    assert (beyond.data, beyond.end) == (b"", True)


async def test_listing_pages_by_name(bench: Bench) -> None:
    volume = await provided(bench)
    for name in ("b", "a", "d/e", "c"):
        await write(bench, volume, name, b"1")
    first = await bench.cloud.list(volume, "", after=None, limit=3)
    assert [(entry.path, entry.kind) for entry in first] == [("a", "file"), ("b", "file"), ("c", "file")]
    rest = await bench.cloud.list(volume, "", after="c", limit=3)
    assert [(entry.path, entry.kind) for entry in rest] == [("d", "directory")]
    assert [entry.path for entry in await bench.cloud.list(volume, "d", after=None, limit=3)] == ["d/e"]


async def test_deleting(bench: Bench) -> None:
    volume = await provided(bench)
    await write(bench, volume, "folder/file", b"1")
    with pytest.raises(Conflict):
        await bench.cloud.delete(volume, "folder")
    await bench.cloud.delete(volume, "folder/file")
    with pytest.raises(NotFound):
        await bench.cloud.delete(volume, "folder/file")
    with pytest.raises(Invalid):
        await bench.cloud.delete(volume, "")


async def test_what_is_not_there_and_what_is_a_folder(bench: Bench) -> None:
    volume = await provided(bench)
    await write(bench, volume, "folder/file", b"1")
    with pytest.raises(NotFound):
        await bench.cloud.read(volume, "nothing", offset=0, length=1)
    with pytest.raises(NotFound):
        await bench.cloud.list(volume, "nothing", after=None, limit=1)
    with pytest.raises(Conflict):
        await bench.cloud.read(volume, "folder", offset=0, length=1)
    with pytest.raises(Conflict):
        await bench.cloud.list(volume, "folder/file", after=None, limit=1)
    with pytest.raises(Conflict):
        await write(bench, volume, "folder", b"1")


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/etc/passwd"])
async def test_no_path_leads_outside(bench: Bench, path: str) -> None:
    volume = await provided(bench)
    with pytest.raises(Invalid):
        await bench.cloud.stat(volume, path)
    with pytest.raises(Invalid):
        await write(bench, volume, path, b"1")


async def test_probe(bench: Bench) -> None:
    volume = await provided(bench)
    probe = await bench.cloud.probe(volume, read_only=False)
    assert probe.ok
    assert probe.writable
    assert probe.seconds > 0
    assert not (await bench.cloud.probe(volume, read_only=True)).writable
    assert await bench.cloud.list(volume, "", after=None, limit=5) == []


async def test_abandoned_uploads_are_swept(bench: Bench) -> None:
    volume = await provided(bench)
    await bench.cloud.write(volume, "file", upload="x", offset=0, data=b"abc", end=False)
    assert await bench.cloud.sweep(volume, older_than=3600) == 0
    if isinstance(bench.cloud, LocalStorage):
        folder = bench.root / "data/digits" / UPLOADS
        for file in folder.iterdir():
            os.utime(file, (time.time() - 7200,) * 2)
        assert await bench.cloud.sweep(volume, older_than=3600) == 1
        assert not folder.exists()
    else:
        assert await bench.cloud.sweep(volume, older_than=0) == 1
    with pytest.raises(Conflict):
        await bench.cloud.write(volume, "file", upload="x", offset=3, data=b"d", end=True)


# -- the local cloud alone ---------------------------------------------------------------------------


async def test_local_admission(local: Bench, tmp_path: Path) -> None:
    async def problem(path: Path | str) -> str:
        errors = await local.cloud.admit(DatastoreSpec(name="x", local=Local(path=str(path))))
        assert all(error.field == "local.path" for error in errors)
        return errors[0].message if errors else ""

    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("/etc")
    assert await problem(tmp_path / "new" / "folder") == ""
    assert "ELEARN_LOCAL_ROOTS" in await problem("/etc")
    assert "ELEARN_LOCAL_ROOTS" in await problem(tmp_path / "link" / "sub")
    assert "not a folder" in await problem(tmp_path / "file" / "sub")
    assert "elearn's own" in await problem(tmp_path)
    assert "elearn's own" in await problem(tmp_path / "home" / "postgres" / "base")


async def test_local_release_keeps_what_users_wrote(local: Bench) -> None:
    volume = await provided(local)
    await write(local, volume, "mine", b"1")
    await local.cloud.release("u1")
    assert (local.root / "data/digits/mine").read_bytes() == b"1"


async def test_local_release_removes_only_an_empty_folder_of_its_own(local: Bench) -> None:
    (local.root / "theirs").mkdir()
    await provided(local, "u1", path="theirs")
    await provided(local, "u2", path="ours")
    await provided(local, "u3", path="shared")
    await provided(local, "u4", path="shared")
    for uid in ("u1", "u2", "u3"):
        await local.cloud.release(uid)
    assert (local.root / "theirs").is_dir()
    assert not (local.root / "ours").exists()
    assert (local.root / "shared").is_dir()


async def test_local_folder_lost_and_found(tmp_path: Path) -> None:
    cloud = local_storage(tmp_path.resolve(), check_every=0.02)
    bench = Bench(cloud, tmp_path.resolve())
    await cloud.provision(directory(bench))
    watch = cloud.watch()
    assert isinstance(await next_of(watch), Provided)
    assert await next_of(watch) == Synced()
    folder = bench.root / "data/digits"
    folder.rename(bench.root / "elsewhere")
    lost = await next_of(watch)
    assert isinstance(lost, Unprovided)
    assert str(folder) in lost.reason
    folder.symlink_to(bench.root / "elsewhere")
    linked = await next_of(watch)
    assert isinstance(linked, Unprovided)
    assert "symbolic link" in linked.reason
    folder.unlink()
    (bench.root / "elsewhere").rename(folder)
    while not isinstance(found := await next_of(watch), Provided):
        assert isinstance(found, Unprovided)
    cloud.close()


async def test_local_interrupted_provision_is_taken_up(local: Bench) -> None:
    from services.datastore.cloud.local.records import Record, Records

    path = str(local.root / "data/digits")
    Records(local.root / "home" / "datastore").put(
        Record(uid="u1", project="default", name="digits", path=path, made=True)
    )
    watch = local.cloud.watch()
    assert await next_of(watch) == Synced()
    await local.cloud.provision(directory(local))
    assert isinstance(await next_of(watch), Provided)


async def test_local_links(local: Bench) -> None:
    volume = await provided(local)
    top = local.root / "data/digits"
    (local.root / "secret").write_text("outside")
    (top / "real").mkdir()
    (top / "inside").symlink_to("real")
    (top / "outside").symlink_to(local.root)
    await write(local, volume, "inside/file", b"1")
    assert (top / "real/file").read_bytes() == b"1"
    listed = {entry.path: entry for entry in await local.cloud.list(volume, "", after=None, limit=9)}
    assert listed["inside"].kind == "symlink"
    assert listed["inside"].target == "real"
    for path in ("outside/secret", "outside"):
        with pytest.raises(Invalid, match="leads outside"):
            await local.cloud.stat(volume, path)
    with pytest.raises(Invalid, match="leads outside"):
        await write(local, volume, "outside/new", b"1")
    await local.cloud.delete(volume, "outside")
    assert (local.root / "secret").exists()


async def test_local_odd_entries(local: Bench) -> None:
    volume = await provided(local)
    top = local.root / "data/digits"
    os.mkfifo(top / "pipe")
    os.mkdir(os.fsencode(top) + b"/not-\xff-utf8")  # noqa: PTH102 - a name that no str has
    with pytest.raises(Conflict, match="a pipe"):
        await local.cloud.read(volume, "pipe", offset=0, length=1)
    names = [entry.path for entry in await local.cloud.list(volume, "", after=None, limit=9)]
    assert names == ["not-\\udcff-utf8", "pipe"]
    with pytest.raises(Invalid, match="reserved"):
        await write(local, volume, f"{UPLOADS}/mine", b"1")
    with pytest.raises(Invalid):
        await write(local, volume, "x" * 300, b"1")
    assert not (top / UPLOADS).exists()


async def test_local_full_disk(local: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = await provided(local)

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageFull):
        await write(local, volume, "file", b"1")
    assert list((local.root / "data/digits").iterdir()) == []


async def test_local_no_right(local: Bench) -> None:
    volume = await provided(local)
    top = local.root / "data/digits"
    top.chmod(0o500)
    try:
        if os.access(top, os.W_OK):
            pytest.skip("root may write everywhere")
        with pytest.raises(Forbidden):
            await write(local, volume, "file", b"1")
        assert not (await local.cloud.probe(volume, read_only=False)).ok
    finally:
        top.chmod(0o700)
