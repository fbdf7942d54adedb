"""Start a TensorFlow cluster by hand: the baseline elearn is measured against, and what tests the examples.

It gives each process what elearn would give it, and no more: TF_CONFIG with free ports of this machine (none
for a single task), and the placeholders of a command.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self


def free_addresses(count: int) -> list[str]:
    """`count` different addresses of this machine whose ports are free now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


class ClusterByHand:
    """Processes named `chief-0`, `worker-1`, …, each logging to `logs/NAME.log`; they end with the `with`."""

    def __init__(
        self,
        command: Sequence[str],
        roles: Mapping[str, int],
        *,
        cwd: Path,
        logs: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = list(command)
        self._cwd = cwd
        self._logs = logs
        self._env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0", **(env or {})}
        self._env.pop("TF_CONFIG", None)
        addresses = iter(free_addresses(sum(roles.values())))
        self.hosts = {role: [next(addresses) for _ in range(count)] for role, count in roles.items() if count}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for role, hosts in self.hosts.items():
                for index in range(len(hosts)):
                    self.start(f"{role}-{index}")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def start(self, name: str) -> None:
        """Start a task, or start it again on its address once it has ended; its log goes on then."""
        role, _, index = name.rpartition("-")
        values = {"role": role, "index": index}
        values |= {f"{each}_hosts": ",".join(self.hosts.get(each, [])) for each in ("chief", "worker", "ps")}
        command = [re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), part) for part in self._command]
        env = self._env
        if sum(map(len, self.hosts.values())) > 1:
            task = {"type": role, "index": int(index)}
            env = {**env, "TF_CONFIG": json.dumps({"cluster": self.hosts, "task": task})}
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("ab" if name in self._processes else "wb") as log:
            self._processes[name] = subprocess.Popen(
                command, cwd=self._cwd, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def log(self, name: str) -> str:
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def running(self, name: str) -> bool:
        return self._processes[name].poll() is None

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def wait(self, name: str, seconds: float) -> int:
        """The exit code of a task; minus the signal's number where a signal ended it.

        Raises TimeoutError, with the end of every log, when the task runs longer.
        """
        try:
            return self._processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} still runs after {seconds:g} s\n{self.logs()}") from None

    def wait_for(self, name: str, text: str, seconds: float) -> None:
        """Wait until a task's log contains `text`.

        Raises TimeoutError, with the end of every log, also when the task ends without having said it.
        """
        deadline = time.monotonic() + seconds
        while text not in self.log(name):
            if time.monotonic() > deadline or not (self.running(name) or text in self.log(name)):
                raise TimeoutError(f"{name} never said {text!r}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        """The last lines of every log, for the story of a failure."""
        tails = {name: "\n".join(self.log(name).splitlines()[-25:]) for name in self._processes}
        return "\n".join(f"--- {name}\n{tail}" for name, tail in tails.items())

    def end(self) -> None:
        """End what still runs: SIGTERM, and SIGKILL for what ignores it for five seconds."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + 5
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
