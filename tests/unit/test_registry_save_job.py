"""The save job in this process: what a full disk and an interruption leave."""

import errno
import os
from pathlib import Path

import pytest

from services.registry.model import Key
from services.registry.model_store import ModelStore
from services.registry.save_job import __main__ as job_main
from services.registry.save_job.errors import CannotSaveError
from services.registry.save_job.job import DISK_FULL_EXIT, Job, read_result
from tests.contract.job_cloud_models import write_saved_model

KEY = Key("default", "digits", 1)


def job(tmp_path: Path, *, attempt: int = 1) -> Job:
    return Job(
        project="default",
        model="digits",
        number=1,
        attempt=attempt,
        volume=str(tmp_path.resolve()),
        path="export",
        shown="export in datastore runs",
        store=str(tmp_path.resolve() / "models"),
    )


def files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "models").rglob("*") if not path.is_dir()]


def full(*_: object, **__: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    write_saved_model(tmp_path / "export")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(CannotSaveError, match="the model store's disk is full"):
            job_main.save(job(tmp_path))
    assert files(tmp_path) == []
    assert job_main.save(job(tmp_path)).files == 3


def test_no_room_even_for_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    write_saved_model(tmp_path / "export")
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.json").write_bytes(msgspec.json.encode(job(tmp_path)))
    monkeypatch.setattr("sys.argv", ["save_job", "--job", str(folder / "job.json")])
    with monkeypatch.context() as patched:
        patched.setattr(job_main, "write_result", full)
        assert job_main.main() == DISK_FULL_EXIT
    assert read_result(folder) is None
    assert job_main.main() == 0  # the next attempt finds the version and says so
    result = read_result(folder)
    assert result is not None
    assert result.facts is not None


@pytest.mark.parametrize("left", ["staging", "staging of another attempt", "version without manifest", "trash"])
def test_what_an_interrupted_attempt_left_is_no_obstacle(tmp_path: Path, left: str) -> None:
    folder = write_saved_model(tmp_path / "export")
    store = ModelStore(tmp_path / "models")
    place = {
        "staging": store.staging(KEY, 1),
        "staging of another attempt": store.staging(KEY, 7),
        "version without manifest": store.version(KEY),
        "trash": tmp_path / "models" / ".trash" / "default.digits.1.abc",
    }[left]
    place.mkdir(parents=True)
    (place / "half").write_text("half")
    facts = job_main.save(job(tmp_path))
    assert facts.files == 3
    assert sorted(path.name for path in store.version(KEY).iterdir()) == sorted(path.name for path in folder.iterdir())
    assert not any(path.name == "half" for path in files(tmp_path))


def test_the_store_keeps_other_versions(tmp_path: Path) -> None:
    write_saved_model(tmp_path / "export")
    job_main.save(job(tmp_path))
    store = ModelStore(tmp_path / "models")
    other = Key("default", "digits", 11)  # begins like the one removed
    for place in (store.version(other), store.staging(other, 1)):
        place.mkdir(parents=True)
    store.remove(KEY)
    assert store.version(other).is_dir()
    assert store.staging(other, 1).is_dir()
