"""A disk without room: one clear error, nothing half done, and everything goes on once there is room again."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import msgspec
import pytest

from elearn import Client
from elearn.up.databases import url
from elearn.up.home import Home, Secrets
from elearn.up.place import SUPERUSER
from elearn.up.state import State
from shared.contracts.event import Event
from tests.contract.job_cloud_models import write_saved_model
from tests.support.product import (
    PARTS,
    Product,
    Trainings,
    assert_nothing_held,
    running,
    tar_of,
    told,
    until,
    wait_freed,
)

pytestmark = [pytest.mark.slow]

BYTES = 400 * 2**20
LARGE = os.urandom(6 * 2**20)
LIFE = ["queued", "starting", "running", "succeeded", "freed"]


class Disk:
    """A small file system of its own that can be filled."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._ballast = root / "ballast"

    def free(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int) -> None:
        """Leave so many bytes free."""
        with self._ballast.open("ab", buffering=0) as file:
            while (more := self.free() - leave) > 0:
                try:
                    file.write(b"\0" * min(more, 2**20))
                except OSError:  # somebody else took the last of it
                    return

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount the small disk that is to be filled")
    root = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={BYTES},mode=0755", "elearn-test", root],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine mounts no small disk: {mounted.stderr.strip()}")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on another disk, with room."""
    return tmp_path_factory.mktemp("outside")


@pytest.fixture(scope="module")
def product(disk: Disk, outside: Path) -> Iterator[Product]:
    with running(disk.root / "home", {"ELEARN_LOCAL_ROOTS": f"{disk.root}:{outside}"}) as found:
        yield found


@pytest.fixture(scope="module")
def client(product: Product, disk: Disk) -> Client:
    client = product.client()
    client.datastores.create({"name": "full", "local": {"path": str(disk.root / "full")}})
    client.datastores.wait("full", timeout=60)
    return client


@pytest.fixture(scope="module")
def trainings(client: Client, outside: Path) -> Trainings:
    trainings = Trainings(client, outside / "runs")
    write_saved_model(trainings.folder / "export", weights=LARGE)
    return trainings


@pytest.fixture
def nearly_full(disk: Disk, client: Client, trainings: Trainings) -> Iterator[None]:
    """Room for a few more rows and events, for nothing large."""
    disk.fill(2 * 2**20)
    yield
    disk.make_room()


def assert_said_in_words(status: int, problem: dict[str, object]) -> None:
    assert status == 507, problem
    assert (problem["type"], problem["status"]) == ("urn:elearn:problem:storage-full", 507)
    detail = str(problem["detail"])
    assert "No space left" in detail or "disk is full" in detail
    assert "\n" not in detail


def test_an_upload_leaves_nothing(product: Product, disk: Disk, nearly_full: None) -> None:
    before = disk.free()
    with product.http() as http:
        refused = http.put("/datastores/full/files/folder/large", content=LARGE)
        assert_said_in_words(refused.status_code, refused.json())
        assert http.get("/datastores/full/files/").json()["items"] == []
        assert [path for path in (disk.root / "full").rglob("*") if path.is_file()] == []
        assert disk.free() >= before - 2**16
        disk.make_room()
        assert http.put("/datastores/full/files/folder/large", content=LARGE).status_code == 201
        assert http.get("/datastores/full/files/folder/large").content == LARGE
        http.delete("/datastores/full/files/folder/large")


def test_code_is_stored_whole_or_not_at_all(product: Product, disk: Disk, nearly_full: None) -> None:
    archive = tar_of({"weights": LARGE})
    path = f"/code/sha256:{hashlib.sha256(archive).hexdigest()}"
    with product.http() as http:
        refused = http.put(path, content=archive)
        assert_said_in_words(refused.status_code, refused.json())
        assert http.head(path).status_code == 404
        disk.make_room()
        assert http.put(path, content=archive).status_code == 201
        assert http.head(path).status_code == 200


def test_the_command_says_it_in_one_line(product: Product, nearly_full: None, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(LARGE)
    (tmp_path / "training.yaml").write_text("kind: training\nname: large\ncode: .\ncommand: [python, train.py]\n")
    ran = product.run("training", "submit", str(tmp_path / "training.yaml"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.count("\n") == 1
    assert "No space left" in ran.stderr or "disk is full" in ran.stderr


def test_a_save_fails_in_words_and_leaves_nothing(
    product: Product, client: Client, disk: Disk, nearly_full: None
) -> None:
    client.models.save("model", "export", datastore="runs")
    ended = until(
        lambda: found if (found := client.models.version("model", 1)).state != "saving" else None, "it has ended"
    )
    assert ended.state == "failed"
    assert "disk is full" in ended.reason
    store = product.home / "models"
    until(lambda: [path for path in store.rglob("*") if path.is_file()] == [], "what was half copied is thrown away")
    disk.make_room()
    client.models.save("model", "export", datastore="runs")
    assert client.models.wait("model", 2, timeout=60).size > len(LARGE)


async def begin_segments(product: Product, count: int) -> None:
    """PostgreSQL's write-ahead log goes on in a new file, so many times."""
    home = Home(product.home)
    password = msgspec.json.decode(home.secrets.read_bytes(), type=Secrets).postgres[SUPERUSER]
    ports = msgspec.json.decode(home.state.read_bytes(), type=State).ports
    connection = await asyncpg.connect(url(SUPERUSER, password, ports.postgres, "scheduler"))
    try:
        for _ in range(count):
            await connection.execute("SELECT pg_current_xact_id()")
            await connection.execute("SELECT pg_switch_wal()")
    finally:
        await connection.close()


def test_no_room_at_all(product: Product, client: Client, trainings: Trainings, disk: Disk) -> None:
    """What runs goes on and ends; what is asked for is refused or done later; nothing dies of it."""
    asyncio.run(begin_segments(product, 1))  # room for all that is written meanwhile
    name = trainings.submit("before", {"chief": {}, "worker": {}}).name
    trainings.await_started(name, 2)
    client.trainings.wait(name, until="running")
    pids = {part: product.pid(part) for part in PARTS if part != "nats"}
    taken: list[str] = []
    try:
        with product.http() as http:
            for leave in (2**17, 2**16, 2**15, 2**14, 2**12, 0, 0):  # bytes
                disk.fill(leave)
                answer = http.post("/trainings", json=trainings.spec("full"))
                if answer.status_code in (201, 202):  # a page of its table had some room left
                    taken.append(answer.json()["name"])
                else:
                    assert_said_in_words(answer.status_code, answer.json())
            disk.fill(0)
            refused = http.put("/datastores/full/files/small", content=b"x" * 10_000)
            assert_said_in_words(refused.status_code, refused.json())
            assert http.get(f"/trainings/{name}").status_code == 200
        trainings.go(name)
        until(lambda: product.tasks(name) == {}, "its tasks have ended")
    finally:
        disk.make_room()
    # A stream that could not be written is written again only by a new server: the one part that may not stay.
    product.await_ready()
    assert {part: product.pid(part) for part in PARTS if part != "nats"} == pids
    assert {each.name for each in client.trainings.list()} == {name, *taken}
    next_one = trainings.submit("after").name
    for each in (*taken, next_one):
        trainings.go(each)
    for each, starts in ((name, 2), (next_one, 1), *((each, 1) for each in taken)):
        ended = wait_freed(client, each)
        assert (ended.state, ended.attempt) == ("succeeded", 1), ended.reason
        assert len(trainings.starts(each)) == starts


def test_no_room_for_the_next_file_of_the_log(
    product: Product, client: Client, trainings: Trainings, disk: Disk
) -> None:
    """PostgreSQL ends itself where it finds none, and does so again until there is; nothing is lost of it."""
    name = trainings.submit("logged", {"chief": {}, "worker": {}}).name
    starts = trainings.await_started(name, 2)
    client.trainings.wait(name, until="running")
    before = product.pid("postgres")
    assert before is not None
    try:
        disk.fill(0)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            asyncio.run(begin_segments(product, 20))
        with product.http() as http:
            assert http.post("/trainings", json=trainings.spec("refused")).status_code in (503, 507)
        trainings.go(name)
        until(lambda: product.tasks(name) == {}, "its tasks have ended")
    finally:
        disk.make_room()
    product.await_back("postgres", before)
    ended = wait_freed(client, name)
    assert (ended.state, ended.attempt) == ("succeeded", 1), ended.reason
    assert trainings.starts(name) == starts


def test_every_event_was_told_once_and_in_order(product: Product, client: Client) -> None:
    names = [training.name for training in client.trainings.list()]

    def complete() -> list[Event]:
        events = product.events(client)
        return events if all("freed" in told(events, "training", name) for name in names) else []

    events = until(complete, "what happened on the full disk is told later")
    for name in names:
        assert told(events, "training", name) == LIFE
    assert told(events, "version", "model") == ["saving", "failed", "saving", "ready"]
    assert_nothing_held(client)
    product.await_ready()
    assert product.tracebacks() == []
