"""The init container's program: folders of datastores, code from Secrets, mount points."""

import gzip
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from services.scheduler.cloud.kubernetes.preparation import AWAY, REFUSED, VARIABLE, Folder, Preparation
from services.scheduler.cloud.kubernetes.prepare import Places, find_or_make, main, make_point, unpack_into
from services.scheduler.cloud.kubernetes.receiving import receive
from shared.archive import digest_of, pack
from shared.errors import Invalid, NotFound, Unavailable


def folder(volume: Path, path: str, *, make: bool = True) -> Folder:
    return Folder(datastore="runs", volume=str(volume), path=path, make=make)


def silent(_: str) -> None:
    pass


@pytest.fixture
def code(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "package" / "deep").mkdir(parents=True)
    (source / "train.py").write_text("print('hello')\n")
    (source / "package" / "deep" / "data.txt").write_text("x" * 5000)
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("train.py")
    return source


@pytest.fixture
def archive(tmp_path: Path, code: Path) -> Path:
    pack(code, tmp_path / "code.tar.gz")
    return tmp_path / "code.tar.gz"


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("secrets", "workspace"):
        (tmp_path / name).mkdir()
    (tmp_path / "message").touch()
    return Places(code=tmp_path / "secrets", workspace=tmp_path / "workspace", message=tmp_path / "message")


def deliver(places: Places, data: bytes, size: int = 700) -> None:
    for number, start in enumerate(range(0, len(data), size)):
        (places.code / f"part-{number:02}").write_bytes(data[start : start + size])


def told(asked: Preparation) -> dict[str, str]:
    return {VARIABLE: msgspec.json.encode(asked).decode()}


# -- folders


def test_a_folder_is_made_with_its_parents_and_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        find_or_make(folder(tmp_path, "digits-1/out"))
    assert (tmp_path / "digits-1" / "out").is_dir()


def test_the_top_itself_is_found(tmp_path: Path) -> None:
    find_or_make(folder(tmp_path, "", make=False))


def test_a_folder_that_must_be_there_and_is_not(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"^folder 'digits/raw' of datastore 'runs' is not there$"):
        find_or_make(folder(tmp_path, "digits/raw", make=False))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["../other", "a/../../other", "/other", "away", "away/deeper"])
def test_no_folder_is_made_outside_of_its_volume(tmp_path: Path, path: str) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "away").symlink_to("/tmp")
    with pytest.raises(Invalid, match=r"folder '.*' of datastore 'runs': .*(leads out|must be relative)"):
        find_or_make(folder(volume, path))
    assert sorted(tmp_path.iterdir()) == [volume]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(Invalid, match="folder 'out' of datastore 'runs': Not a directory"):
        find_or_make(folder(tmp_path, "out"))


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root; test_kubernetes_code runs it as another")
def test_a_volume_where_nothing_may_be_made_says_as_whom(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(Invalid, match=f"Permission denied: elearn works in it as user {os.getuid()}"):
        find_or_make(folder(tmp_path, "out"))


# -- code


def test_code_that_was_compressed_when_uploaded_comes_as_it_was(places: Places, archive: Path, tmp_path: Path) -> None:
    deliver(places, archive.read_bytes(), size=50)
    assert receive(places.code, digest_of(archive), tmp_path, say=silent).read_bytes() == archive.read_bytes()


def test_code_that_was_compressed_on_its_way_is_expanded(places: Places, code: Path, tmp_path: Path) -> None:
    plain = tmp_path / "code.tar"
    pack(code, plain, compress=False)
    deliver(places, gzip.compress(plain.read_bytes()))
    assert receive(places.code, digest_of(plain), tmp_path, say=silent).read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("data", [b"something else", gzip.compress(b"something else"), gzip.compress(b"x" * 99)[:-9]])
def test_code_that_is_not_what_was_uploaded_is_refused(places: Places, tmp_path: Path, data: bytes) -> None:
    deliver(places, data)
    digest = f"sha256:{hashlib.sha256(b'code').hexdigest()}"
    with pytest.raises(Invalid, match="its digest is another"):
        receive(places.code, digest, tmp_path, say=silent)


def test_a_missing_part_is_noticed(places: Places, archive: Path, tmp_path: Path) -> None:
    deliver(places, archive.read_bytes(), size=50)
    (places.code / "part-01").unlink()
    with pytest.raises(Invalid, match="its digest is another"):
        receive(places.code, digest_of(archive), tmp_path, say=silent)


def test_a_secret_without_code_is_not_ours_to_judge(places: Places, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="empty"):
        receive(places.code, "sha256:0", tmp_path, say=silent)


# -- the working directory


def test_code_is_unpacked_into_the_folder_that_is_there(places: Places, archive: Path) -> None:
    unpack_into(archive, places.workspace)
    assert sorted(path.name for path in places.workspace.iterdir()) == ["link", "package", "run.sh", "train.py"]
    assert (places.workspace / "link").readlink() == Path("train.py")
    assert (places.workspace / "package" / "deep" / "data.txt").stat().st_size == 5000


def test_the_group_may_write_what_was_unpacked(places: Places, archive: Path) -> None:
    unpack_into(archive, places.workspace)
    modes = {name: stat.S_IMODE((places.workspace / name).stat().st_mode) for name in ("package", "train.py", "run.sh")}
    assert modes == {"package": 0o775, "train.py": 0o664, "run.sh": 0o775}


def test_unpacking_again_repairs_and_keeps_what_others_made(places: Places, archive: Path) -> None:
    unpack_into(archive, places.workspace)
    workspace = places.workspace
    (workspace / "out").mkdir()
    (workspace / "out" / "model").write_text("weights")
    (workspace / "package" / "made").write_text("by the task")
    (workspace / "train.py").unlink()
    (workspace / "train.py").mkdir()
    (workspace / "train.py" / "file").touch()
    (workspace / "package" / "deep" / "data.txt").unlink()
    (workspace / "package" / "deep").rmdir()
    (workspace / "package" / "deep").symlink_to("/etc")
    (workspace / ".elearn-unpacking-k6q2" / "code").mkdir(parents=True)
    unpack_into(archive, workspace)
    assert (workspace / "train.py").read_text() == "print('hello')\n"
    assert not (workspace / "package" / "deep").is_symlink()
    assert (workspace / "package" / "deep" / "data.txt").stat().st_size == 5000
    assert (workspace / "out" / "model").read_text() == "weights"
    assert (workspace / "package" / "made").read_text() == "by the task"
    assert not list(workspace.glob(".elearn-*"))


def test_mount_points_are_made_in_the_code_folder(places: Places, archive: Path) -> None:
    unpack_into(archive, places.workspace)
    for _ in range(2):
        make_point(places.workspace, "package/data/digits")
    assert (places.workspace / "package" / "data" / "digits").is_dir()


@pytest.mark.parametrize(("path", "named"), [("train.py", "train.py"), ("link/x", "link"), ("train.py/x", "train.py")])
def test_a_mount_over_a_file_of_the_code_is_refused(places: Places, archive: Path, path: str, named: str) -> None:
    unpack_into(archive, places.workspace)
    with pytest.raises(Invalid, match=f"mount {path}: {named} is a link or a file in the code folder"):
        make_point(places.workspace, path)


# -- the whole


def test_all_that_is_asked_is_done_and_again(places: Places, archive: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    deliver(places, archive.read_bytes())
    asked = Preparation(
        code=digest_of(archive), folders=(folder(volume, "own/digits-1"),), points=("out", "data/digits")
    )
    before = os.umask(0o022)
    try:
        for _ in range(2):
            assert main(told(asked), places) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((volume / "own" / "digits-1").stat().st_mode) == 0o775
    assert (places.workspace / "train.py").is_file()
    assert (places.workspace / "data" / "digits").is_dir()
    assert places.message.read_text() == ""


@pytest.mark.parametrize(
    ("environ", "code", "words"),
    [
        ({}, REFUSED, "ELEARN_PREPARATION can't be read"),
        ({VARIABLE: "{}x"}, REFUSED, "ELEARN_PREPARATION can't be read"),
        (told(Preparation(code="sha256:0")), AWAY, "the Secret with the code is empty"),
        (
            told(Preparation(folders=(Folder(datastore="d", volume="/nowhere", path="x", make=False),))),
            REFUSED,
            "folder 'x' of datastore 'd' is not there",
        ),
    ],
)
def test_what_fails_is_said_in_one_line(
    places: Places, capsys: pytest.CaptureFixture[str], environ: dict[str, str], code: int, words: str
) -> None:
    before = os.umask(0o022)
    try:
        assert main(environ, places) == code
    finally:
        os.umask(before)
    assert places.message.read_text().startswith(words)
    assert places.message.read_text().count("\n") == 1
    assert capsys.readouterr().err == places.message.read_text()


def test_it_is_light() -> None:
    loads = (
        "import sys, services.scheduler.cloud.kubernetes.prepare\n"
        "print({'asyncio', 'asyncpg', 'nats', 'aiohttp', 'structlog', 'numpy'} & set(sys.modules))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", loads], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
