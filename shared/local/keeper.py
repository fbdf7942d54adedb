"""The keeper of one task: launch, wait, restart by policy, end, record. Runs in the shim's process only."""
# ruff: noqa: PTH108, PTH110, PTH123, PTH208, PTH104, PTH118, SIM105, S606
# pathlib and contextlib would cost the shim as much as all the rest of its start.

import _signal  # type: ignore[import-not-found,unused-ignore]
import _socket
import errno
import fcntl
import os
import time

from lowlevel import (  # type: ignore[import-not-found,unused-ignore]  # beside us on the shim's path
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    descendants,
    identity,
    json_of,
    parents,
    prctl,
    read_json,
    send,
)

TYPE_CHECKING = False  # `typing` costs 5 ms
if TYPE_CHECKING:
    from typing import Any

_SIGNALS = (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP)
_LOG_CHECK_SECONDS = 2.0
_STRAYS_SECONDS = 10.0  # how long killed processes may take to vanish (uninterruptible reads) before we go on
_TASK_OOM_SCORE = 300  # short of memory, the kernel takes a task before a database or a service


class Keeper:
    """One task's keeper: launch, wait, restart by policy, end, record."""

    def __init__(self, spec: "Any", ready: int) -> None:
        self._spec = spec
        self._ready = ready
        self._main = 0
        self._main_gone = False
        self._stop_at: float | None = None
        self._log = os.open(spec["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._log_limit = int(spec["log_limit"])
        self._holds = [self._hold(path) for path in spec["hold"]]
        self.status: dict[str, Any] = {
            "id": spec["id"],
            "state": "starting",
            "shim": identity(os.getpid()),
            "task": None,
            "restarts": 0,
            "created_at": time.time(),
            "started_at": None,
            "finished_at": None,
            "exit_code": None,
            "signal": None,
            "error": None,
            "stop_requested": False,
            "cpu_seconds": 0.0,
            "peak_memory": 0,
        }

    @staticmethod
    def _hold(path: str) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return descriptor

    def run(self) -> None:
        """Keep the task until its end is recorded."""
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _SIGNALS)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._write("starting")
        while True:
            error = self._launch()
            if error is not None:
                self._main_gone = True
                self._clear_strays()
                self._finish("failed", error)
                return
            self._write("running", keep_going=True)
            self._say_ready()
            self._supervise()
            self._write("ending", keep_going=True)
            self._clear_strays()
            if self._stop_at is not None or not self._again() or not self._pause():
                self._finish("exited", self.status["error"])
                return

    # -- starting

    def _launch(self) -> str | None:
        """Start the task; the reason in words where that fails."""
        told, telling = os.pipe()
        shim = os.getpid()
        self._main_gone = False
        self._main = os.fork()
        if self._main == 0:
            os.close(told)
            self._become_task(shim, telling)
        os.close(telling)
        self.status.update(task=identity(self._main), started_at=time.time(), exit_code=None, signal=None, error=None)
        error = b""
        while chunk := os.read(told, 4096):
            error += chunk
        os.close(told)
        return error.decode("utf-8", "replace") if error else None

    def _become_task(self, shim: int, telling: int) -> None:
        spec = self._spec
        try:
            os.setsid()
            if spec["mounts"]:
                import mounting  # type: ignore[import-not-found,unused-ignore]  # only mounts pay for ctypes

                mounting.enter(
                    [mounting.Bind(one["source"], one["target"], one["read_only"]) for one in spec["mounts"]]
                )
            # After the namespace: changed credentials would clear it.
            prctl(PR_SET_PDEATHSIG, _signal.SIGKILL)
            if os.getppid() != shim:
                os._exit(1)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(self._log, 1)
            os.dup2(self._log, 2)
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                file.write(str(_TASK_OOM_SCORE))
            # Python ignores some, `nohup` and shells in the background others, and exec would pass that on.
            for number in _signal.valid_signals():
                if _signal.getsignal(number) == _signal.SIG_IGN:
                    _signal.signal(number, _signal.SIG_DFL)
            try:
                os.chdir(spec["cwd"])
            except OSError as problem:
                raise OSError(f"working directory {spec['cwd']}: {problem.strerror}") from problem
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            execute(spec["argv"], spec["env"])
        except BaseException as problem:  # noqa: BLE001  # the forked child must never return into the shim's code
            os.write(telling, (str(problem) or repr(problem)).encode("utf-8", "replace")[:4000])
        os._exit(127)

    def _say_ready(self) -> None:
        if self._ready >= 0:
            try:
                os.write(self._ready, b"\0")
            except BrokenPipeError:
                pass  # the service that asked has gone; the next one reads the status
            os.close(self._ready)
            self._ready = -1

    # -- waiting

    def _supervise(self) -> None:
        """Wait until the task has ended; once asked to stop, until all of it has, or its grace is over."""
        while True:
            self._reap()
            if self._main_gone and (self._stop_at is None or not self._has_children()):
                return
            if self._stop_at is not None and time.monotonic() >= self._stop_at:
                return
            self._wait_signal()

    def _wait_signal(self, longest: float = _LOG_CHECK_SECONDS) -> None:
        if self._stop_at is not None:
            longest = max(0.0, min(longest, self._stop_at - time.monotonic()))
        received = _signal.sigtimedwait(_SIGNALS, longest)
        if received is None:
            self._bound_log()
        elif received.si_signo == _signal.SIGTERM:
            self._begin_stop()

    def _reap(self) -> None:
        while True:
            try:
                pid, code, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.status["cpu_seconds"] = round(
                float(self.status["cpu_seconds"]) + usage.ru_utime + usage.ru_stime,
                3,
            )
            self.status["peak_memory"] = max(int(self.status["peak_memory"]), usage.ru_maxrss * 1024)
            if pid == self._main:
                self._main_gone = True
                self.status["exit_code"] = os.WEXITSTATUS(code) if os.WIFEXITED(code) else None
                self.status["signal"] = os.WTERMSIG(code) if os.WIFSIGNALED(code) else None

    def _has_children(self) -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    # -- ending

    def _begin_stop(self) -> None:
        """Ask everything of the task to end; a second request may shorten the grace."""
        grace = float(self._spec["grace"])
        try:
            grace = float(read_json("stop.json")["grace"])
        except (OSError, ValueError, KeyError, StopIteration):
            pass  # stopped by a plain signal: the grace of the spec holds
        first = self._stop_at is None
        at = time.monotonic() + grace
        self._stop_at = at if self._stop_at is None else min(at, self._stop_at)
        if not first:
            return
        self.status["stop_requested"] = True
        if self._main and not self._main_gone:
            try:
                os.killpg(self._main, _signal.SIGTERM)
            except ProcessLookupError:
                return
            for pid in descendants(os.getpid()):
                try:
                    if os.getpgid(pid) != self._main:
                        send(pid, _signal.SIGTERM)
                except ProcessLookupError:
                    continue

    def _clear_strays(self) -> None:
        """Kill and reap whatever is left: every orphan of the task becomes our child (we are its subreaper)."""
        give_up = time.monotonic() + _STRAYS_SECONDS
        if not self._main_gone:
            send(-self._main, _signal.SIGKILL)
        while True:
            self._reap()
            if not self._has_children():
                return
            if time.monotonic() > give_up:
                self.status["error"] = "some of its processes can't be ended: they hang in the kernel"
                return
            own = os.getpid()
            for pid, parent in parents().items():
                if parent == own:
                    send(pid, _signal.SIGKILL)
            _signal.sigtimedwait((_signal.SIGCHLD,), 0.05)

    def _again(self) -> bool:
        policy, most = self._spec["restart"]["policy"], self._spec["restart"]["most"]
        if policy == "never" or (policy == "on_failure" and self.status["exit_code"] == 0):
            return False
        return bool(policy == "always" or self.status["restarts"] < most)

    def _pause(self) -> bool:
        """Say what happened, wait the policy's delay; False when asked to stop meanwhile."""
        restart = self._spec["restart"]
        done = int(self.status["restarts"])
        ran = time.time() - float(self.status["started_at"])
        delays = restart["delays"] or [0.0]
        delay = delays[0] if ran >= restart["healthy_after"] else delays[min(done, len(delays) - 1)]
        how = (
            f"ended by signal {self.status['signal']}"
            if self.status["exit_code"] is None
            else f"ended with exit code {self.status['exit_code']}"
        )
        of = f" of {restart['most']}" if restart["policy"] == "on_failure" else ""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"[elearn {stamp}] {how} after {ran:.1f} s; starting it again in {delay:g} s (restart {done + 1}{of})\n"
        try:
            os.write(self._log, line.encode())
        except OSError:
            pass  # a full disk must not keep the task from coming back; the status holds the same facts
        self._write("waiting", keep_going=True)
        until = time.monotonic() + delay
        while (left := until - time.monotonic()) > 0:
            self._wait_signal(left)
            if self._stop_at is not None:
                return False
        self.status["restarts"] = done + 1
        return True

    # -- recording

    def _finish(self, state: str, error: object) -> None:
        self.status.update(finished_at=time.time(), error=error)
        if state == "failed":
            self.status.update(exit_code=None, signal=None)
        while True:  # the end is worth waiting for: a disk that is full now may not stay so
            try:
                self._write(state, durable=True)
            except OSError:
                time.sleep(1.0)
            else:
                break
        self._say_ready()

    def _write(self, state: str, *, durable: bool = False, keep_going: bool = False) -> None:
        self.status["state"] = state
        try:
            descriptor = os.open("status.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, json_of(self.status).encode())
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename("status.tmp", "status.json")
        except OSError:
            if not keep_going:
                raise
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        """Wake who watches: best effort, the file is the truth. Relative paths, for sockets' 108 bytes."""
        try:
            names = os.listdir("../.watchers")
        except OSError:
            return
        for name in names:
            path = "../.watchers/" + name
            sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            try:
                sender.settimeout(0.05)
                sender.connect(path)
                sender.send(str(self._spec["id"]).encode())
            except ConnectionRefusedError:  # its watcher died without cleaning up
                try:
                    os.unlink(path)
                except OSError:
                    continue
            except OSError:
                continue
            finally:
                sender.close()

    def _bound_log(self) -> None:
        """Free the older half of a log over its limit; offsets stay, readers find a hole (see logs.py)."""
        try:
            stat = os.fstat(self._log)
            if self._log_limit and stat.st_blocks * 512 > self._log_limit:
                import ctypes

                keep_size_and_punch_hole = 3
                end = (stat.st_size - self._log_limit // 2) // 4096 * 4096
                descriptor = os.open(self._spec["log"], os.O_RDWR | os.O_CLOEXEC)
                fallocate = ctypes.CDLL(None, use_errno=True).fallocate
                fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
                if end > 0 and fallocate(descriptor, keep_size_and_punch_hole, 0, end) != 0:
                    self._log_limit = 0  # this file system can't: the log is unbounded here
                os.close(descriptor)
        except OSError:
            self._log_limit = 0


def execute(argv: list[str], env: dict[str, str]) -> None:
    """Become the command; raises OSError in words a user understands."""
    command = argv[0]
    if "/" in command:
        candidates = [command]
    else:
        path = env.get("PATH", os.defpath)
        candidates = [os.path.join(each or ".", command) for each in path.split(":")]
    refused = None
    for candidate in candidates:
        try:
            os.execve(candidate, argv, env)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            if problem.errno == errno.ENOEXEC:
                raise OSError(f"{candidate} is no program: a script needs a first line such as #!/bin/sh") from None
            if problem.errno == errno.E2BIG:
                raise OSError(f"{command}: command and environment are too long for this system") from None
            refused = refused or f"{candidate}: {problem.strerror}"
    if refused:
        raise OSError(refused)
    if os.path.exists(candidates[0]) and len(candidates) == 1:
        raise OSError(f"{command}: the interpreter in its first line does not exist")
    where = "" if "/" in command else f" in PATH ({env.get('PATH', os.defpath)})"
    raise OSError(f"command not found: {command}{where}")
