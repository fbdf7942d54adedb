"""Secrets by reference on one machine: from a file into the environment of the tasks that ask, and nowhere else."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from services.scheduler.cloud.local import LocalCloud
from services.scheduler.cloud.local.secret_files import NoSecret, SecretFiles
from services.scheduler.cloud.port import AttemptSeen, Launch
from services.scheduler.errors import CannotLaunch
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.spec import plan_tasks
from shared.contracts.training import SecretKey, TrainingSpec
from shared.local.ledger import Ledger
from shared.local.machine import Machine
from tests.support.trainings import spec

VALUE = "a-value-that-nobody-else-knows"
TOKEN = SecretKey(name="team", key="token")


def put(home: Path, data: bytes = f"{VALUE}\n".encode()) -> Path:
    path = home / "secrets" / "p" / "team" / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def is_private(path: Path, top: Path) -> bool:
    """Whether some folder on the way keeps others out."""
    on_the_way = [parent for parent in path.parents if parent.is_relative_to(top)]
    return any(stat.S_IMODE(parent.stat().st_mode) == 0o700 for parent in on_the_way)


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"x\n", "x"), (b"x", "x"), (b"x\r\n", "x"), (b"x\n\n", "x\n"), (b"", ""), ("ü".encode(), "ü")],
)
def test_a_value_is_the_file_s_text(tmp_path: Path, data: bytes, found: str) -> None:
    put(tmp_path, data)
    assert SecretFiles(tmp_path).value("p", TOKEN) == found


@pytest.mark.parametrize(
    ("data", "words"), [(b"\xff", "can't be read"), (b"a\0b", "holds a NUL"), (b"x" * (2**20 + 1), "too long")]
)
def test_what_can_t_be_a_value_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    put(tmp_path, data)
    with pytest.raises(NoSecret, match=words):
        SecretFiles(tmp_path).value("p", TOKEN)


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    path = put(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(NoSecret, match="can't be read"):
        SecretFiles(tmp_path).value("p", TOKEN)


async def test_a_task_gets_the_value_and_nothing_keeps_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    ledger = Ledger(home / "ledger.json", Machine(cpu=4, memory=2**33, gpus=()))
    cloud = LocalCloud(home, ledger, TensorFlow(), None, grace=1)  # type: ignore[arg-type]  # there is no code
    program = "import hashlib, os; print(hashlib.sha256(os.environ['API_TOKEN'].encode()).hexdigest())"
    asked = spec(command=("python", "-c", program), secrets={"API_TOKEN": TOKEN})

    def launch(attempt: int, one: TrainingSpec = asked) -> Launch:
        plan = plan_tasks(one, TensorFlow())
        return Launch(project="p", name="t-1", attempt=attempt, spec=one, plan=plan, mounts=())

    try:
        (error,) = (await cloud.examine("p", asked)).errors
        assert error.field == "secrets.API_TOKEN"
        assert str(home / "secrets" / "p" / "team" / "token") in error.message
        with pytest.raises(CannotLaunch, match="no secret 'team' with a key 'token'"):
            await cloud.launch(launch(1))
        put(home)
        assert (await cloud.examine("p", asked)).errors == ()
        await cloud.launch(launch(2))
        async with asyncio.timeout(20):
            async for seen in cloud.watch():
                if isinstance(seen, AttemptSeen) and seen.tasks[0].finished_at is not None:
                    assert seen.tasks[0].state == "succeeded"
                    break
        holding = [path for path in home.rglob("spec.json") if VALUE in path.read_text()]
        assert all(is_private(path, home) for path in holding)
        await cloud.free("p", "t-1", 2)
        part = await cloud.logs("p", "t-1", 2, "chief-0", offset=0, length=1000)
        assert len(part.data) == 65
        kept = [path for path in home.rglob("*") if path.is_file() and VALUE.encode() in path.read_bytes()]
        assert kept == [home / "secrets" / "p" / "team" / "token"]
    finally:
        await cloud.free("p", "t-1", 1)
        await cloud.close()
    assert VALUE not in os.environ.values()
