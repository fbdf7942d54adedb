"""Tasks as real processes: started once, started again, ended wholly, their end recorded."""

import asyncio
import fcntl
import os
import signal
import time

import pytest

from shared.errors import Internal, Invalid
from shared.local.identity import MARKER, is_alive
from shared.local.processes import ProcessStatus, Restart, end_all
from shared.local.records import write_spec
from shared.local.spec import BindMount, ProcessSpec
from tests.support.local_processes import Home, Settings, home, is_running, pid_in, until_exists

__all__ = ["home"]

QUICK = (0.0,)


class TestStart:
    async def test_records_how_a_task_ended(self, home: Home) -> None:
        status = await home.processes.start("a", home.shell("echo out; echo err >&2; exit 3"))
        assert status.state in ("running", "ending", "exited")
        final = await home.processes.wait("a", 10)
        assert (final.state, final.exit_code, final.signal, final.error) == ("exited", 3, None, None)
        assert not final.succeeded
        assert final.words() == "ended with exit code 3"
        assert final.finished_at is not None
        assert final.started_at is not None
        assert final.created_at <= final.started_at <= final.finished_at
        assert home.log.read_text() == "out\nerr\n"
        assert final.peak_memory > 0

    async def test_gives_the_environment_it_was_told_and_nothing_else(
        self, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_THE_SERVICE", "x")
        await home.processes.start("a", home.spec("/usr/bin/env", env={"GIVEN": "yes"}))
        await home.processes.wait("a", 10)
        names = dict(line.split("=", 1) for line in home.log.read_text().splitlines())
        assert names.pop("GIVEN") == "yes"
        assert names.pop(MARKER) == str(home.processes.root / "a")
        assert set(names) == {"PATH"}

    async def test_signals_are_as_a_program_expects_them(self, home: Home) -> None:
        # As `nohup elearn up &` leaves them.
        ours = [(each, signal.signal(each, signal.SIG_IGN)) for each in (signal.SIGHUP, signal.SIGQUIT)]
        try:
            await home.processes.start("a", home.shell("grep -E '^Sig(Blk|Ign)' /proc/self/status"))
            await home.processes.wait("a", 10)
        finally:
            for number, handler in ours:
                signal.signal(number, handler)
        of_the_c_library = 0b11 << 31  # signals 32 and 33: nobody else can set them, and `make` leaves them ignored
        sets = [int(line.split()[1], 16) & ~of_the_c_library for line in home.log.read_text().splitlines()]
        assert sets == [0, 0]

    @pytest.mark.parametrize(
        ("argv", "settings", "words"),
        [
            (("no-such-command",), {}, "command not found: no-such-command in PATH"),
            (("./no-such-file",), {}, "command not found: ./no-such-file"),
            (("./plain",), {}, "./plain: Permission denied"),
            (("./no-shebang",), {}, "./no-shebang is no program"),
            (("./bad-shebang",), {}, "./bad-shebang: the interpreter in its first line does not exist"),
            (("/bin/true",), {"cwd": "/no/such/folder"}, "working directory /no/such/folder: No such file"),
            (("/bin/true", "x" * 200_000), {}, "/bin/true: command and environment are too long"),
            (
                ("/bin/true",),
                {"mounts": (BindMount(source="/no/source", target="/work"),)},
                "mount source /no/source: No such file or directory",
            ),
        ],
    )
    async def test_says_in_words_why_it_can_not(
        self, home: Home, argv: tuple[str, ...], settings: Settings, words: str
    ) -> None:
        (home.work / "plain").write_text("echo")
        for name, text in (("no-shebang", "echo hi"), ("bad-shebang", "#!/no/such/interpreter\n")):
            (home.work / name).write_text(text)
            (home.work / name).chmod(0o755)
        status = await home.processes.start("a", home.spec(*argv, **settings))
        assert status.state == "failed"
        assert status.error is not None
        assert status.error.startswith(words)
        assert "\n" not in status.error

    async def test_starts_once_whoever_asks(self, home: Home) -> None:
        spec = home.shell("echo started; exec sleep 60")
        answers = await asyncio.gather(*(home.again().start("a", spec) for _ in range(6)))
        assert len({answer.shim.pid for answer in answers}) == 1
        async with asyncio.timeout(10):
            while not home.log.read_text():  # it runs, and has not said so yet
                await asyncio.sleep(0.01)
        other = await home.again().start("a", home.shell("echo another"))
        assert other.shim == answers[0].shim
        await home.processes.stop("a")
        finished = await home.processes.start("a", spec)
        assert finished.finished
        assert home.log.read_text() == "started\n"

    async def test_a_start_cut_off_before_its_keeper_lived_can_be_repeated(self, home: Home) -> None:
        spec = home.shell("echo started")
        folder = home.processes.root / "a"
        folder.mkdir(parents=True)
        (folder / "spec.json").write_bytes(b"")  # the service was killed while it wrote
        (folder / "spec.json").unlink()
        (folder / "spec.half").write_bytes(b"{")
        assert await home.processes.status("a") is None
        await home.processes.start("a", spec)
        assert (await home.processes.wait("a", 10)).succeeded

    async def test_says_why_no_keeper_could_be_started(self, home: Home) -> None:
        with pytest.raises(Internal, match=r"can't start process a: .*No such file or directory.*missing"):
            await home.processes.start("a", home.shell("true", log=str(home.home / "missing" / "log")))
        assert await home.processes.status("a") is None

    @pytest.mark.parametrize("id", ["", "../a", "a/b", ".hidden", "a" * 201, "a\n"])
    async def test_refuses_ids_that_are_no_names(self, home: Home, id: str) -> None:
        with pytest.raises(Invalid, match="can't name a process"):
            await home.processes.start(id, home.shell("true"))

    @pytest.mark.parametrize(
        ("field", "spec"),
        [
            ("command", ProcessSpec(argv=(), env={}, cwd="/", log="/l")),
            ("command", ProcessSpec(argv=("a\0b",), env={}, cwd="/", log="/l")),
            ("cwd", ProcessSpec(argv=("a",), env={}, cwd="relative", log="/l")),
            ("log", ProcessSpec(argv=("a",), env={}, cwd="/", log="relative")),
        ],
    )
    async def test_refuses_specs_that_can_not_be(self, home: Home, field: str, spec: ProcessSpec) -> None:
        with pytest.raises(Invalid) as refused:
            await home.processes.start("a", spec)
        assert refused.value.errors[0].field == field

    async def test_holds_the_files_it_was_told_to(self, home: Home) -> None:
        held = home.home / "held"
        await home.processes.start("a", home.shell("exec sleep 60", hold=(str(held),)))
        with held.open() as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await home.processes.stop("a")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestRestart:
    FAIL_TWICE = "echo x >> tries; test $(wc -l < tries) -ge 3"

    async def test_on_failure_until_it_succeeds(self, home: Home) -> None:
        policy = Restart(policy="on_failure", most=5, delays=QUICK)
        await home.processes.start("a", home.shell(self.FAIL_TWICE, restart=policy))
        final = await home.processes.wait("a", 20)
        assert (final.state, final.exit_code, final.restarts) == ("exited", 0, 2)
        assert final.succeeded
        lines = home.log.read_text().splitlines()
        assert [line.split("] ")[1].split(" after")[0] for line in lines] == ["ended with exit code 1"] * 2
        assert lines[1].endswith("(restart 2 of 5)")

    async def test_on_failure_no_more_than_allowed(self, home: Home) -> None:
        policy = Restart(policy="on_failure", most=1, delays=QUICK)
        await home.processes.start("a", home.shell("echo run; kill -KILL $$", restart=policy))
        final = await home.processes.wait("a", 20)
        assert (final.state, final.exit_code, final.signal, final.restarts) == ("exited", None, 9, 1)
        assert home.log.read_text().count("run\n") == 2

    async def test_never_is_the_default(self, home: Home) -> None:
        await home.processes.start("a", home.shell("exit 1"))
        assert (await home.processes.wait("a", 10)).restarts == 0

    async def test_always_also_after_success(self, home: Home) -> None:
        policy = Restart(policy="always", delays=QUICK)
        await home.processes.start(
            "a", home.shell("echo x >> tries; test $(wc -l < tries) -lt 3 || exec sleep 60", restart=policy)
        )
        async for change in home.processes.watch():
            if isinstance(change, ProcessStatus) and change.restarts == 2:
                break
        final = await home.processes.stop("a")
        assert final is not None
        assert (final.state, final.signal, final.stop_requested) == ("exited", signal.SIGTERM, True)

    async def test_a_task_killed_from_outside_comes_back_on_its_own(self, home: Home) -> None:
        policy = Restart(policy="on_failure", most=3, delays=QUICK)
        first = await home.processes.start("a", home.shell("exec sleep 60", restart=policy))
        assert first.task is not None
        os.kill(first.task.pid, signal.SIGKILL)
        async for change in home.processes.watch():
            if isinstance(change, ProcessStatus) and change.restarts == 1 and change.state == "running":
                assert change.task is not None
                assert change.task != first.task
                assert change.shim == first.shim
                break

    async def test_stopping_while_it_waits_ends_it(self, home: Home) -> None:
        policy = Restart(policy="always", delays=(60.0,))
        await home.processes.start("a", home.shell("exit 7", restart=policy))
        async for change in home.processes.watch():
            if isinstance(change, ProcessStatus) and change.state == "waiting":
                break
        final = await home.processes.stop("a")
        assert final is not None
        assert (final.state, final.exit_code, final.restarts) == ("exited", 7, 0)

    async def test_a_log_on_a_full_disk_does_not_keep_it_from_coming_back(self, home: Home) -> None:
        policy = Restart(policy="on_failure", most=5, delays=QUICK)
        await home.processes.start("a", home.shell(self.FAIL_TWICE, restart=policy, log="/dev/full"))
        assert (await home.processes.wait("a", 20)).restarts == 2


class TestStop:
    async def test_lets_a_task_say_goodbye(self, home: Home) -> None:
        ready = home.work / "ready"
        script = "trap 'echo bye; exit 0' TERM; echo 1 > ready; while :; do sleep 0.05; done"
        await home.processes.start("a", home.shell(script))
        await until_exists(ready)
        final = await home.processes.stop("a")
        assert final is not None
        assert (final.exit_code, final.stop_requested) == (0, True)
        assert "bye" in home.log.read_text()

    async def test_gives_children_of_an_ended_shell_their_grace(self, home: Home) -> None:
        child = "trap 'sleep 0.3; echo saved > saved; exit 0' TERM; echo 1 > ready; while :; do sleep 0.05; done"
        await home.processes.start("a", home.shell(f'/bin/sh -c "{child}" & exec sleep 60'))
        await until_exists(home.work / "ready")
        await home.processes.stop("a")
        assert (home.work / "saved").exists()

    async def test_kills_what_ignores_it_wherever_it_went(self, home: Home) -> None:
        script = (
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    if os.fork() == 0:\n"
            "        os.environ.clear()\n"
            "        open('stray', 'w').write(str(os.getpid()))\n"
            "        time.sleep(60)\n"
            "    os._exit(0)\n"
            "open('ready', 'w').write('1')\n"
            "time.sleep(60)\n"
        )
        await home.processes.start("a", home.python(script))
        await until_exists(home.work / "stray")
        await until_exists(home.work / "ready")
        began = time.monotonic()
        final = await home.processes.stop("a", grace=0.3)
        assert 0.3 <= time.monotonic() - began < 5
        assert final is not None
        assert (final.state, final.signal) == ("exited", signal.SIGKILL)
        assert not is_running(pid_in(home.work / "stray"))

    async def test_a_second_request_may_shorten_the_grace(self, home: Home) -> None:
        await home.processes.start("a", home.shell("trap '' TERM; echo 1 > ready; while :; do sleep 0.05; done"))
        await until_exists(home.work / "ready")
        patient = asyncio.create_task(home.processes.stop("a", grace=60))
        async with asyncio.timeout(10):
            while not (home.processes.root / "a" / "stop.json").exists():
                await asyncio.sleep(0.005)
        await home.again().stop("a", grace=0.1)
        async with asyncio.timeout(5):
            final = await patient
        assert final is not None
        assert final.signal == signal.SIGKILL

    async def test_ending_by_itself_takes_left_over_children_along(self, home: Home) -> None:
        await home.processes.start("a", home.shell("setsid sleep 60 & echo $! > stray; exit 0"))
        final = await home.processes.wait("a", 10)
        assert final.succeeded
        assert not is_running(pid_in(home.work / "stray"))

    async def test_what_has_gone_or_never_was_is_success(self, home: Home) -> None:
        assert await home.processes.stop("never") is None
        await home.processes.start("a", home.shell("exit 0"))
        await home.processes.wait("a", 10)
        again = await home.processes.stop("a")
        assert again is not None
        assert again.stop_requested is False

    async def test_what_was_asked_for_and_not_started_never_will_be(self, home: Home) -> None:
        folder = home.processes.root / "a"
        folder.mkdir(parents=True)
        write_spec(folder, "a", home.shell("echo started"))  # and here the service was killed
        assert [status.state for status in await home.processes.list()] == ["starting"]
        final = await home.processes.stop("a")
        assert final is not None
        assert (final.state, final.error) == ("failed", "stopped before it was started")
        assert (await home.processes.start("a", home.shell("echo started"))).state == "failed"
        assert not home.log.exists()
        await home.processes.remove("a")

    async def test_a_stop_meets_a_start_that_is_under_way(self, home: Home) -> None:
        spec = home.shell("exec sleep 60")
        started, stopped = await asyncio.gather(home.processes.start("a", spec), home.again().stop("a", grace=1))
        if stopped is None:  # it came first
            stopped = await home.processes.stop("a")
        assert stopped is not None
        assert stopped.finished
        assert started.task is None or not is_alive(started.task)

    async def test_a_keeper_that_hangs_is_killed_and_its_task_with_it(self, home: Home) -> None:
        status = await home.processes.start("a", home.shell("exec sleep 60"))
        os.kill(status.shim.pid, signal.SIGSTOP)
        stopping = asyncio.create_task(home.processes.stop("a", grace=0.1))
        os.kill(status.shim.pid, signal.SIGKILL)
        final = await stopping
        assert final is not None
        assert final.state == "lost"
        assert status.task is not None
        assert not is_alive(status.task)

    async def test_signals_reach_the_whole_group(self, home: Home) -> None:
        script = "trap 'echo got >> got' USR1; echo 1 > ready; while :; do sleep 0.05; done"
        await home.processes.start("a", home.shell(script))
        await until_exists(home.work / "ready")
        assert await home.processes.signal("a", signal.SIGUSR1)
        await until_exists(home.work / "got")
        await home.processes.stop("a", grace=0.1)
        assert not await home.processes.signal("a", signal.SIGUSR1)

    async def test_all_of_a_home_at_once(self, home: Home) -> None:
        for name in ("a", "b"):
            await home.processes.start(name, home.shell("exec sleep 60"))
        await home.processes.start("c", home.shell("trap '' TERM; while :; do sleep 0.05; done"))
        await home.processes.start("d", home.shell("exit 0"))
        await home.processes.wait("d", 10)
        assert await asyncio.to_thread(end_all, home.home, 1.0) == 3
        assert {status.state for status in await home.processes.list()} == {"exited"}
        assert await asyncio.to_thread(end_all, home.home) == 0
