"""Tasks that outlive who started them, or are lost: found again, watched, told apart from strangers."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from shared.errors import Conflict
from shared.local.identity import ProcessIdentity, boot_id, identify, is_alive
from shared.local.processes import ProcessStatus, end_all
from shared.local.records import write_spec
from tests.support.local_processes import Home, home, is_running, pid_in, until_exists

__all__ = ["home"]


class TestLost:
    SCRIPT = "setsid /bin/sh -c 'echo $$ > stray; exec sleep 60' & exec sleep 60"

    async def test_a_killed_keeper_takes_its_task_and_strays_along(self, home: Home) -> None:
        status = await home.processes.start("a", home.shell(self.SCRIPT))
        await until_exists(home.work / "stray")
        assert status.task is not None
        os.kill(status.shim.pid, signal.SIGKILL)
        final = await home.processes.wait("a", 10)
        assert (final.state, final.exit_code, final.error) == ("lost", None, "lost: its keeper process was killed")
        assert not is_alive(status.task)
        assert not is_running(pid_in(home.work / "stray"))

    async def test_it_is_noticed_at_once_by_all_who_watch(self, home: Home) -> None:
        status = await home.processes.start("a", home.shell("exec sleep 60"))

        async def first_end(manager: Home) -> ProcessStatus:
            async for change in manager.again().watch(resync=3600):
                if isinstance(change, ProcessStatus) and change.finished:
                    return change
            raise AssertionError("a watch ended")

        watching = [asyncio.create_task(first_end(home)) for _ in range(3)]
        async with asyncio.timeout(10):
            while len(list(home.processes.watchers().glob("*.sock")) if home.processes.watchers().exists() else []) < 3:
                await asyncio.sleep(0.005)
            os.kill(status.shim.pid, signal.SIGKILL)
            ends = await asyncio.gather(*watching)
        assert {end.state for end in ends} == {"lost"}

    async def test_a_pid_that_is_another_s_by_now_is_left_alone(self, home: Home) -> None:
        innocent = await asyncio.create_subprocess_exec("/bin/sleep", "60", start_new_session=True)
        try:
            now = identify(innocent.pid)
            assert now is not None
            before = msgspec.structs.replace(now, started=now.started - 1)
            record(home, ProcessStatus(id="a", state="running", shim=before, task=before))
            status = await home.processes.status("a")
            assert status is not None
            assert status.state == "lost"
            assert not await home.processes.signal("a", signal.SIGKILL)
            await home.processes.stop("a", grace=0)
            assert end_all(home.home, 0.1) == 0
            assert innocent.returncode is None
            assert identify(innocent.pid) == now
        finally:
            innocent.kill()
            await innocent.wait()

    async def test_a_restart_of_the_machine_loses_what_ran(self, home: Home) -> None:
        innocent = identify(os.getpid())
        assert innocent is not None
        before = msgspec.structs.replace(innocent, boot="another-boot")
        record(home, ProcessStatus(id="a", state="running", shim=before, task=before))
        status = await home.processes.status("a")
        assert status is not None
        assert (status.state, status.error) == ("lost", "lost: the machine was restarted")

    @pytest.mark.parametrize("damaged", ["spec.json", "status.json"])
    async def test_a_power_cut_may_damage_what_was_not_forced_to_disk(self, home: Home, damaged: str) -> None:
        folder = home.processes.root / "a"
        folder.mkdir(parents=True)
        write_spec(folder, "a", home.shell("true"))
        stored = (folder / "spec.json").read_bytes().replace(boot_id().encode(), b"before")
        (folder / "spec.json").write_bytes(stored)
        (folder / damaged).write_bytes(b"")
        status = await home.processes.status("a")
        assert status is not None
        assert (status.state, status.error) == ("lost", "lost: the machine was restarted")

    async def test_an_end_that_was_seen_before_the_keeper_died_counts(self, home: Home) -> None:
        gone = ProcessIdentity(pid=2**22 - 1, started=1, boot=boot_id())
        record(home, ProcessStatus(id="a", state="ending", shim=gone, task=gone, exit_code=0))
        status = await home.processes.status("a")
        assert status is not None
        assert status.succeeded


class TestServices:
    async def test_a_killed_service_leaves_its_tasks_and_the_next_finds_them(self, home: Home) -> None:
        service = (
            "import asyncio, os, pathlib, signal\n"
            "from shared.local.processes import *\n"
            "async def main():\n"
            f"    processes = LocalProcesses(pathlib.Path({str(home.processes.root)!r}))\n"
            "    await processes.start('a', ProcessSpec(argv=('/bin/sleep', '60'), env={},"
            f" cwd='/', log={str(home.log)!r}))\n"
            "    async for change in processes.watch():\n"
            "        if isinstance(change, Synced): os.kill(os.getpid(), signal.SIGKILL)\n"
            "asyncio.run(main())\n"
        )
        died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", service], check=False, timeout=30)
        assert died.returncode == -signal.SIGKILL
        dead_socket = next(home.processes.watchers().glob("*.sock"))
        watch = home.processes.watch()
        found = await anext(watch)
        assert isinstance(found, ProcessStatus)
        assert (found.id, found.state) == ("a", "running")
        await home.processes.stop("a")
        assert not dead_socket.exists()
        await watch.aclose()
        assert not list(home.processes.watchers().glob("*.sock"))

    async def test_a_watch_tells_what_is_there_then_what_changes(self, home: Home) -> None:
        await home.processes.start("a", home.shell("exit 0"))
        await home.processes.wait("a", 10)
        await home.processes.start("b", home.shell("exec sleep 60"))
        seen: list[object] = []
        async with asyncio.timeout(20):
            async for change in home.processes.watch(resync=3600):
                seen.append(change if not isinstance(change, ProcessStatus) else (change.id, change.state))
                if len(seen) == 3:
                    await home.again().start("c", home.shell("exit 4"))
                if seen[-1] == ("c", "exited"):
                    await home.again().remove("a")
                if type(change).__name__ == "Removed":
                    break
        assert seen[:2] == [("a", "exited"), ("b", "running")]
        assert type(seen[2]).__name__ == "Synced"
        assert ("c", "exited") in seen

    async def test_wake_ups_that_found_no_room_are_made_up_for(self, home: Home) -> None:
        async with asyncio.timeout(20):
            async with contextlib.aclosing(home.processes.watch(resync=3600)) as watch:
                assert type(await anext(watch)).__name__ == "Synced"
                for _ in range(600):  # the loop is busy meanwhile: most find the queue full
                    home.processes.tell_watchers("nobody")
                gone = ProcessIdentity(pid=2**22 - 1, started=1, boot=boot_id())
                record(home, ProcessStatus(id="a", state="exited", shim=gone, exit_code=3))
                told = await anext(watch)
        assert isinstance(told, ProcessStatus)
        assert (told.id, told.exit_code) == ("a", 3)

    async def test_a_path_longer_than_a_socket_s_name_is_fine(self, tmp_path: Path) -> None:
        deep = Home(tmp_path.joinpath(*["d" * 60] * 4))
        watch = deep.processes.watch(resync=3600)
        async with asyncio.timeout(20):
            assert type(await anext(watch)).__name__ == "Synced"
            await deep.processes.start("a", deep.shell("exit 0"))
            async for change in watch:
                if isinstance(change, ProcessStatus) and change.finished:
                    break
        await watch.aclose()

    async def test_only_what_has_ended_is_forgotten(self, home: Home) -> None:
        await home.processes.start("a", home.shell("exec sleep 60"))
        with pytest.raises(Conflict, match="still runs"):
            await home.processes.remove("a")
        await home.processes.stop("a")
        await home.processes.remove("a")
        await home.processes.remove("a")
        assert await home.processes.list() == ()
        assert home.log.exists()
        with pytest.raises(Conflict, match="no process"):
            await home.processes.wait("a")

    async def test_lists_by_prefix(self, home: Home) -> None:
        for id in ("x.1", "x.2", "y.1"):
            await home.processes.start(id, home.shell("exit 0"))
        assert [status.id for status in await home.processes.list("x.")] == ["x.1", "x.2"]
        assert await Home(home.home / "empty").processes.list() == ()

    async def test_waiting_has_an_end(self, home: Home) -> None:
        await home.processes.start("a", home.shell("exec sleep 60"))
        with pytest.raises(TimeoutError):
            await home.processes.wait("a", 0.05)


def record(home: Home, status: ProcessStatus) -> None:
    folder = home.processes.root / status.id
    folder.mkdir(parents=True)
    (folder / "status.json").write_bytes(msgspec.json.encode(status))
