"""Uploads that run side by side share a folder, which whoever ends last removes."""

import os
import threading
from pathlib import Path

import pytest

from services.datastore.cloud.local import files
from shared.errors import ElearnError


def test_the_folder_of_uploads_may_vanish_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.mkdir
    removed: list[str] = []

    def another_ends_just_then(name: str, *args: object, dir_fd: int) -> None:
        make(name, dir_fd=dir_fd)
        if name == files.UPLOADS and len(removed) < 3:
            os.rmdir(name, dir_fd=dir_fd)
            removed.append(name)

    monkeypatch.setattr(os, "mkdir", another_ends_just_then)
    files.write_part(str(tmp_path), "a/b", upload="x", offset=0, data=b"abc", end=True)
    assert (tmp_path / "a" / "b").read_bytes() == b"abc"
    assert len(removed) == 3


def test_many_uploads_at_once_all_arrive(tmp_path: Path) -> None:
    problems: list[ElearnError] = []
    begin = threading.Barrier(8)

    def upload(number: int) -> None:
        begin.wait(10)
        for turn in range(40):
            try:
                files.write_part(str(tmp_path), f"{number}/{turn}", upload="x", offset=0, data=b"%d" % turn, end=True)
            except ElearnError as error:
                problems.append(error)

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 320
    assert not (tmp_path / files.UPLOADS).exists()
