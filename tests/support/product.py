"""The whole product for tests: `elearn up` in a home of its own, its processes to kill, its traces to read."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from elearn import Client
from elearn import up as platform
from elearn.client.connection import Connection
from elearn.up import proc
from elearn.up.home import Home
from elearn.up.services import SERVICES
from shared.contracts.event import Event
from shared.contracts.training import Training

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ELEARN = str(Path(sys.executable).with_name("elearn"))
PARTS = (*SERVICES, "nats", "postgres")
"""Every process of the platform."""


def until(condition: Callable[[], T | None], what: str, seconds: float = 60.0, every: float = 0.02) -> T:
    """Wait until the condition holds; answers what it answered."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:g} s still not: {what}")
        time.sleep(every)


class Product:
    """An elearn that can be brought up in a home of its own.

    Args:
        environment: settings for its services, beside the caller's environment without any ELEARN_ of its own.
    """

    def __init__(self, home: Path, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ELEARN_")},
            "ELEARN_HOME": str(home),
            **(environment or {}),
        }
        self._opened: list[Client] = []

    # -- the command

    def run(self, *arguments: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run the `elearn` command, whatever comes of it."""
        return subprocess.run(
            [ELEARN, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def json(self, *arguments: str, timeout: float = 120) -> Any:
        """What a command that must succeed answers."""
        ran = self.run(*arguments, "-o", "json", timeout=timeout)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    def up(self) -> None:
        ran = self.run("up", "--port", "0", "--detach")
        assert ran.returncode == 0, f"{ran.stderr}\n{self.last_words()}"

    def down(self) -> None:
        """End everything, and make sure that it is so."""
        for client in self._opened:
            client.close()
        self._opened.clear()
        ran = self.run("down")
        assert ran.returncode == 0, ran.stderr
        assert self.processes() == {}

    def client(self) -> Client:
        """A client of it, closed when it is brought down."""
        client = Client.at(self.connection)
        self._opened.append(client)
        return client

    @property
    def connection(self) -> Connection:
        url = self.status().url
        assert url is not None, "it is not up"
        return Connection(url=url, token=(self.home / "token").read_text().strip())

    @contextlib.contextmanager
    def http(self, timeout: float = 30.0) -> Iterator[httpx.Client]:
        """Bare HTTP in the default project, where nothing is tried again."""
        connection = self.connection
        with httpx.Client(
            base_url=f"{connection.url}/v1/projects/{connection.project}",
            headers={"Authorization": f"Bearer {connection.token}"},
            timeout=timeout,
            trust_env=False,
        ) as http:
            yield http

    # -- its processes

    def status(self) -> platform.Status:
        return platform.status(self.home)

    def pid(self, name: str) -> int | None:
        return next(each.pid for each in self.status().services if each.name == name)

    def supervisor(self) -> int:
        owner = Home(self.home).owner()
        assert owner is not None, "nobody supervises"
        return owner.pid

    def kill(self, name: str) -> int:
        """kill -9 of one part; answers the process id that has gone."""
        pid = until(lambda: self.pid(name), f"{name} runs")
        os.kill(pid, signal.SIGKILL)
        return pid

    def await_back(self, name: str, before: int, seconds: float = 60.0) -> None:
        """Wait until a part that was killed runs anew and everything is ready."""

        def back() -> bool:
            status = self.status()
            pid = next(each.pid for each in status.services if each.name == name)
            return status.ready and pid is not None and pid != before

        until(back, f"{name} is back: {self.status().services}", seconds)

    def await_ready(self, seconds: float = 60.0) -> None:
        until(lambda: self.status().ready, "everything is ready", seconds)

    @contextlib.contextmanager
    def unsupervised(self) -> Iterator[None]:
        """What is killed inside stays away until the end."""
        supervisor = self.supervisor()
        os.kill(supervisor, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(supervisor, signal.SIGCONT)

    def postgres_tree(self) -> list[int]:
        """The postmaster and its children."""
        master = self.pid("postgres")
        assert master is not None
        return [master, *(pid for pid in proc.all_pids() if proc.parent(pid) == master)]

    def processes(self) -> dict[int, list[str]]:
        """Command lines of all processes that know this home, by process id."""
        found = {}
        for pid in proc.all_pids():
            words = proc.arguments(pid)
            try:
                folder = str(Path(f"/proc/{pid}/cwd").readlink())
            except OSError:
                continue  # it has ended
            known = proc.environment(pid).get("ELEARN_HOME") == str(self.home)
            if pid != os.getpid() and (known or any(str(self.home) in word for word in (folder, *words))):
                found[pid] = words
        return found

    def tasks(self, training: str) -> dict[str, int]:
        """Process ids of a training's tasks that run now, by task."""
        found = {}
        for pid in self.processes():
            environment = proc.environment(pid)
            # A task leads a session of its own; what it started has its environment too.
            if environment.get("ELEARN_TRAINING") == training and self._is_leader(pid):
                found[f"{environment['ELEARN_ROLE']}-{environment['ELEARN_INDEX']}"] = pid
        return found

    @staticmethod
    def _is_leader(pid: int) -> bool:
        try:
            return os.getsid(pid) == pid
        except ProcessLookupError:
            return False

    def kill_task(self, training: str, task: str) -> int:
        """kill -9 of a task's process."""
        pid = until(lambda: self.tasks(training).get(task), f"{task} of {training} runs")
        os.kill(pid, signal.SIGKILL)
        return pid

    # -- its traces

    def last_words(self) -> str:
        """The ends of all logs."""
        parts = []
        for path in sorted((self.home / "logs").glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"-- {path.name}", *lines]))
        return "\n".join(parts)

    def tracebacks(self) -> list[str]:
        """Names of services whose logs hold a traceback."""
        return [name for name in SERVICES if "Traceback" in (self.home / "logs" / f"{name}.log").read_text()]

    def events(self, client: Client) -> list[Event]:
        """The whole stream from its beginning; no event may be there twice."""
        events = list(client.events(since=0, follow=False))
        twice = [identifier for identifier, count in Counter(event.id for event in events).items() if count > 1]
        assert not twice, [event for event in events if event.id in twice]
        sequences = [event.sequence for event in events]
        assert sequences == sorted(set(sequences), key=lambda each: each or 0)
        return events

    def history(self, client: Client) -> list[Event]:
        """:meth:`events`, once all is told that can be seen to have happened: telling follows a moment later."""

        def whole() -> list[Event]:
            events = self.events(client)
            freed = [training.name for training in client.trainings.list() if training.freed_at is not None]
            if any("freed" not in told(events, "training", name) for name in freed):
                return []
            for model in client.models.list():
                ready = sum(version.state == "ready" for version in client.models.versions(model.name))
                if told(events, "version", model.name).count("ready") < ready:
                    return []
            return events

        return until(whole, "what has happened is told")


def told(events: list[Event], noun: str, name: str) -> list[str]:
    """What happened to one resource, in order: the last word of each event's type."""
    return [
        event.type.rsplit(".", 1)[1]
        for event in events
        if event.subject.split(".")[2] == noun and event.subject.rsplit(".", 1)[1] == name
    ]


def assert_nothing_held(client: Client, seconds: float = 30.0) -> None:
    """All CPU, memory and GPUs are back."""

    def free() -> bool:
        return all((node.cpu_used, node.memory_used, node.gpu_used) == (0, 0, 0) for node in client.cluster().nodes)

    until(free, f"everything is given back: {client.cluster()}", seconds)


def wait_freed(client: Client, name: str, timeout: float = 60.0) -> Training:
    """Wait until a training has ended and holds nothing any more."""
    return client.trainings.wait(name, until="freed", timeout=timeout)


@contextlib.contextmanager
def running(home: Path, environment: Mapping[str, str] | None = None) -> Iterator[Product]:
    """The product, up for the duration of the block, and down with nothing left running afterwards."""
    product = Product(home, environment)
    product.up()
    try:
        yield product
    except BaseException:
        sys.stderr.write(product.last_words())
        raise
    finally:
        product.down()


# -- trainings that are small: one Python process for each task, and a trace of every start


_START = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[1])
task = f"{os.environ['ELEARN_ROLE']}-{os.environ['ELEARN_INDEX']}"
line = f"{os.environ['ELEARN_ATTEMPT']} {task} {os.getpid()} {os.environ['CUDA_VISIBLE_DEVICES']!r}\\n"
with (out / "starts").open("a") as file:
    file.write(line)
while not (out / "go").exists():
    time.sleep(0.02)
"""


class Trainings:
    """Trainings whose tasks write down their start and run until they are told to end.

    Args:
        folder: of the datastore ``runs``.
    """

    def __init__(self, client: Client, folder: Path) -> None:
        self.client = client
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        client.datastores.create({"name": "runs", "local": {"path": str(folder)}})
        client.datastores.wait("runs", timeout=60)

    def submit(self, name: str, roles: Mapping[str, object] | None = None, **fields: object) -> Training:
        return self.client.trainings.submit(self.spec(name, roles, **fields))

    def spec(self, name: str, roles: Mapping[str, object] | None = None, **fields: object) -> dict[str, object]:
        small = {"cpu": 0.1, "memory": "64Mi"}
        asked = {"chief": {}} if roles is None else roles
        resolved = {role: {**small, **(each if isinstance(each, dict) else {})} for role, each in asked.items()}
        return {
            "name": name,
            "command": ["python", "-c", _START, "out"],
            "mounts": [{"datastore": "runs", "path": "out", "own": True}],
            "roles": resolved,
            **fields,
        }

    def go(self, name: str) -> None:
        """Let its tasks end, those too that have not begun."""
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / "go").touch()

    def starts(self, name: str) -> list[list[str]]:
        """Every start of a task: attempt, task, process id, CUDA_VISIBLE_DEVICES."""
        path = self.folder / name / "starts"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def await_started(self, name: str, count: int, seconds: float = 60.0) -> list[list[str]]:
        def started() -> list[list[str]]:
            found = self.starts(name)
            return found if len(found) >= count else []

        return until(started, f"{count} tasks of {name} have started", seconds)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
