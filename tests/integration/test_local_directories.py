"""Mounts as tasks see them: real binds where this machine allows them, symlinks anywhere."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import Invalid, Unsupported
from shared.local import mounting
from shared.local.directories import SYMLINKS_ONLY, Capabilities, Mount, prepare, probe
from tests.support.local_processes import Home, home

__all__ = ["home"]

CAPABILITIES = probe()
needs_namespaces = pytest.mark.skipif(not CAPABILITIES.namespaces, reason=f"no mount namespaces: {CAPABILITIES.why}")
needs_absolute = pytest.mark.skipif(not CAPABILITIES.absolute_mounts, reason=f"no new root: {CAPABILITIES.why}")
BOTH = [pytest.param(CAPABILITIES, marks=needs_namespaces, id="namespace"), pytest.param(SYMLINKS_ONLY, id="symlink")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    source = tmp_path / "store" / "digits"
    source.mkdir(parents=True)
    (source / "seven").write_text("7")
    return source


async def run(home: Home, script: str, mounts: tuple[Mount, ...], capabilities: Capabilities) -> str:
    binds = await asyncio.to_thread(prepare, home.work, mounts, capabilities)
    await home.processes.start("a", home.shell(script, mounts=binds))
    final = await home.processes.wait("a", 20)
    assert final.succeeded, (final, home.log.read_text())
    return home.log.read_text()


@pytest.mark.parametrize("capabilities", BOTH)
class TestBothWays:
    async def test_shows_the_source_and_takes_files(self, home: Home, data: Path, capabilities: Capabilities) -> None:
        mounts = (Mount(source=str(data), path="data/digits"),)
        output = await run(home, "pwd; cat data/digits/seven; echo 8 > data/digits/eight", mounts, capabilities)
        assert output == f"{home.work}\n7"
        assert (data / "eight").stat().st_uid == os.getuid()
        assert (data / "eight").stat().st_gid == os.getgid()

    async def test_preparing_again_changes_nothing(self, home: Home, data: Path, capabilities: Capabilities) -> None:
        mounts = (Mount(source=str(data), path="data/digits"), Mount(source=str(data), path="out"))
        first = prepare(home.work, mounts, capabilities)
        assert prepare(home.work, mounts, capabilities) == first

    @pytest.mark.parametrize("path", ["..", "../x", "a/../../x", ".", "/", "", "a/..", "/proc/x", "/dev"])
    async def test_refuses_paths_that_leave_or_mean_nothing(
        self, home: Home, data: Path, capabilities: Capabilities, path: str
    ) -> None:
        with pytest.raises((Invalid, Unsupported), match=r"mounts\[0\].path"):
            prepare(home.work, (Mount(source=str(data), path=path),), capabilities)
        assert list(home.work.iterdir()) == []

    @pytest.mark.parametrize("other", ["data", "data/digits", "data/digits/below", "./data"])
    async def test_refuses_one_in_another(self, home: Home, data: Path, capabilities: Capabilities, other: str) -> None:
        mounts = (Mount(source=str(data), path="data/digits"), Mount(source=str(data), path=other))
        with pytest.raises(Invalid, match="lie in one another"):
            prepare(home.work, mounts, capabilities)

    @pytest.mark.parametrize("path", ["link", "link/below", "folder/link", "file", "file/below"])
    async def test_refuses_what_the_code_folder_has_bent(
        self, home: Home, data: Path, tmp_path: Path, capabilities: Capabilities, path: str
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (home.work / "link").symlink_to(outside)
        (home.work / "folder").mkdir()
        (home.work / "folder" / "link").symlink_to(outside)
        (home.work / "file").write_text("")
        with pytest.raises(Invalid, match="code folder"):
            prepare(home.work, (Mount(source=str(data), path=path),), capabilities)
        assert list(outside.iterdir()) == []

    async def test_refuses_a_source_that_is_not_there(self, home: Home, capabilities: Capabilities) -> None:
        with pytest.raises(Invalid, match="is not a directory"):
            prepare(home.work, (Mount(source="/no/such", path="x"),), capabilities)


class TestSymlinks:
    async def test_does_not_cover_files_of_the_code_folder(self, home: Home, data: Path) -> None:
        (home.work / "data").mkdir()
        prepare(home.work, (Mount(source=str(data), path="data"),), SYMLINKS_ONLY)
        assert (home.work / "data" / "seven").read_text() == "7"
        (home.work / "full").mkdir()
        (home.work / "full" / "x").write_text("")
        with pytest.raises(Invalid, match="holds files of the code folder"):
            prepare(home.work, (Mount(source=str(data), path="full"),), SYMLINKS_ONLY)

    async def test_refuses_absolute_paths_with_the_reason(self, home: Home, data: Path) -> None:
        with pytest.raises(Unsupported, match="mounts are symlinks here"):
            prepare(home.work, (Mount(source=str(data), path="/data"),), SYMLINKS_ONLY)


@needs_namespaces
class TestNamespaces:
    async def test_enforces_read_only_below_submounts_too(self, home: Home, data: Path) -> None:
        mounts = (Mount(source=str(data), path="ro", read_only=True), Mount(source=str(data), path="rw"))
        output = await run(home, "touch ro/x || echo refused; touch rw/y && ls ro", mounts, CAPABILITIES)
        assert "Read-only file system\nrefused" in output
        assert output.endswith("seven\ny\n")
        assert sorted(path.name for path in data.iterdir()) == ["seven", "y"]

    async def test_covers_files_of_the_code_folder_for_the_task_alone(self, home: Home, data: Path) -> None:
        (home.work / "data").mkdir()
        (home.work / "data" / "mine").write_text("")
        mounts = (Mount(source=str(data), path="data"),)
        assert await run(home, "ls data", mounts, CAPABILITIES) == "seven\n"
        assert [path.name for path in (home.work / "data").iterdir()] == ["mine"]

    async def test_a_restarted_task_sees_its_mounts_again(self, home: Home, data: Path) -> None:
        from shared.local.processes import Restart

        binds = prepare(home.work, (Mount(source=str(data), path="data"),), CAPABILITIES)
        policy = Restart(policy="on_failure", most=2, delays=(0.0,))
        script = "cat data/seven; echo x >> tries; test $(wc -l < tries) -ge 2"
        await home.processes.start("a", home.shell(script, mounts=binds, restart=policy))
        assert (await home.processes.wait("a", 20)).succeeded
        assert home.log.read_text().startswith("7")
        assert home.log.read_text().endswith("7")

    @needs_absolute
    async def test_absolute_paths_appear_for_the_task_alone(self, home: Home, data: Path, tmp_path: Path) -> None:
        below = tmp_path / "made" / "here"
        mounts = (
            Mount(source=str(data), path="/elearn-test-mount/digits", read_only=True),
            Mount(source=str(data), path=str(below)),
            Mount(source=str(data), path="relative"),
        )
        script = (
            "cat /elearn-test-mount/digits/seven relative/seven; touch relative/made; pwd;"
            f"ls {below}; test -e /proc/self/stat; test -w {tmp_path}; test -c /dev/null; touch {tmp_path}/out;"
            "touch /elearn-new-file && echo NOT REFUSED; true"
        )
        output = await run(home, script, mounts, CAPABILITIES)
        assert output.startswith(f"77{home.work}\nmade\nseven\n")
        assert "NOT REFUSED" not in output
        assert not Path("/elearn-test-mount").exists()
        assert (data / "made").exists()
        assert (tmp_path / "out").exists()

    async def test_stops_and_ends_as_any_task(self, home: Home, data: Path) -> None:
        binds = prepare(home.work, (Mount(source=str(data), path="data"),), CAPABILITIES)
        status = await home.processes.start("a", home.shell("sleep 60 & exec sleep 60", mounts=binds))
        os.kill(status.shim.pid, 9)
        final = await home.processes.wait("a", 10)
        assert final.state == "lost"


def test_an_ordinary_user_is_probed_for_real(tmp_path: Path) -> None:
    """As root, ask for another user too: the answer is that user's, and never an exception."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    become_ordinary = (
        "import ctypes, os, sys, runpy\n"
        "if os.getuid() == 0:\n"
        "    os.chown(sys.argv[2], 65534, 65534)\n"
        "    for above in __import__('pathlib').Path(sys.argv[2]).parents:\n"
        "        if above.stat().st_uid == 0 and str(above).startswith('/tmp/'): above.chmod(0o755)\n"
        "    code = runpy.run_path(sys.argv[1])\n"
        "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        "else:\n"
        "    code = runpy.run_path(sys.argv[1])\n"
        "code['main'](sys.argv[2])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", become_ordinary, mounting.__file__, str(scratch)],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert answer.returncode == 0, answer.stderr
    relative, absolute, rest = answer.stdout.split("\n")
    assert rest == ""
    if relative:
        assert "not allowed" in relative or "can't" in relative
        assert absolute == relative
