"""Real NATS (with JetStream) and PostgreSQL for tests.

Taken from the environment (ELEARN_TEST_NATS_URL, ELEARN_TEST_POSTGRES_URL: a superuser's), else from
containers where a Docker engine has the images or can pull them, else from the embedded binaries. One pair serves
a whole test session; every `fresh_database()` is a database of its own, and a test that needs to hurt a server
starts its own with `EmbeddedNats` or `EmbeddedPostgres`.
"""

import asyncio
import concurrent.futures
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from elearn.up import binaries, databases, identity, place, ports, postgres

NATS_IMAGE = "nats:2.11-alpine"
POSTGRES_IMAGE = "postgres:18-alpine"

T = TypeVar("T")

Prepare = Callable[[str], Awaitable[object]]


class FreshDatabase(Protocol):
    async def __call__(self, prepare: Prepare | None = None) -> str:
        """The URL of a new, empty database.

        Args:
            prepare: fills a template once per session, given its URL (migrations, say) and leaving no
                connection open; every further database for the same function is a quick copy of it.
        """


def run_apart(work: Coroutine[object, object, T]) -> T:
    """Run a coroutine in a thread of its own: a session's fixture must not touch a test's event loop."""
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - carried over to the caller
            errors.append(error)

    thread = threading.Thread(target=target, name="run_apart")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


# The kernel ends the servers with the thread that started them, so that thread must last for the whole run.
_STARTER = concurrent.futures.ThreadPoolExecutor(1, "test servers")


class _Process:
    """A server process that dies with the test run at the latest."""

    def __init__(self, folder: Path, port: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port or ports.pick()
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def _spawn(self, command: list[str], env: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.process = _STARTER.submit(
                subprocess.Popen, command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
            ).result()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send a signal and, unless it only pauses or resumes, wait until the process has gone."""
        assert self.process is not None
        self.process.send_signal(number)
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            self.process.wait(timeout=30)

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it in an orderly way; harmless when it has gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.signal(signal.SIGINT)

    def _answering(self, check: Callable[[], bool], timeout: float = 30.0) -> None:
        assert self.process is not None
        deadline = time.monotonic() + timeout
        while not check():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.01)


class EmbeddedNats(_Process):
    """nats-server with JetStream on a port that it keeps over restarts."""

    def __init__(self, folder: Path, port: int | None = None, config: str = "") -> None:
        super().__init__(folder, port)
        self._config = config

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = self.folder / "nats.conf"
        config.write_text(
            f"listen: 127.0.0.1:{self.port}\n"
            f'jetstream {{ store_dir: "{self.folder}", max_file_store: 10GB }}\n{self._config}\n'
        )
        itself = identity.Identity(kind="self", uid=os.geteuid(), gid=os.getegid())
        command = itself.command([str(binaries.nats_server()), "-c", str(config)], end_with=os.getpid())
        self._spawn(command, {"PATH": os.environ["PATH"]})
        self._answering(self._greets)

    def _greets(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False


class EmbeddedPostgres(_Process):
    """PostgreSQL on a port that it keeps over restarts; quick, not durable against power loss."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        self._password = secrets.token_urlsafe(16)
        self._place = place.place(folder, identity.current())

    @property
    def url(self) -> str:
        """The superuser's."""
        return databases.url(place.SUPERUSER, self._password, self.port, "postgres")

    def start(self) -> None:
        run_apart(postgres.initialise(self._place, self._password, self.log))
        if self.process is not None:
            postgres.clear_stale(self._place)
        # Commits still reach the kernel, so they survive kill -9 and only a power failure would lose them.
        settings = {**postgres.SETTINGS, "fsync": "off", "full_page_writes": "off", "max_connections": "200"}
        command = postgres.server(self._place, self.port, settings, end_with=os.getpid())
        self._spawn(command, postgres.environment())
        try:
            run_apart(postgres.ready(self.port))
        except TimeoutError:
            self.stop()
            raise RuntimeError(f"PostgreSQL did not start: {self.log.read_text()[-2000:]}") from None

    def kill(self) -> None:
        """kill -9; its backends end by themselves a moment later, and answer until then."""
        super().kill()
        deadline = time.monotonic() + 30
        while left := postgres.processes(self._place.data):
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL's backends do not end: {[each.pid for each in left]}")
            time.sleep(0.01)


def docker_has(image: str) -> bool:
    """Whether a Docker engine can be used from here, and holds the image or can pull it."""
    return _docker("image", "inspect", image, timeout=5) or _docker("pull", "--quiet", image, timeout=45)


def _docker(*arguments: str, timeout: float) -> bool:
    try:
        done = subprocess.run(["docker", *arguments], capture_output=True, check=False, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _containers_run(image: str) -> bool:
    """Whether containers of the image can be started: beside each run stands one that removes what the run leaves."""
    from testcontainers.core.config import testcontainers_config

    return docker_has(image) and (testcontainers_config.ryuk_disabled or docker_has(testcontainers_config.ryuk_image))


@contextlib.contextmanager
def _nats_container() -> Iterator[str]:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    ready = LogMessageWaitStrategy("Server is ready").with_startup_timeout(60)
    server = DockerContainer(NATS_IMAGE).with_command("-js").with_exposed_ports(4222).waiting_for(ready)
    with server as container:
        yield f"nats://{container.get_container_host_ip()}:{container.get_exposed_port(4222)}"


@contextlib.contextmanager
def _postgres_container() -> Iterator[str]:
    with warnings.catch_warnings():  # for the import alone: a test's own warnings are errors
        warnings.simplefilter("ignore", DeprecationWarning)
        from testcontainers.postgres import PostgresContainer

    with PostgresContainer(POSTGRES_IMAGE, driver=None) as container:
        yield container.get_connection_url()


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A NATS server with JetStream, shared by the session: use stream and subject names of your own."""
    given = os.environ.get("ELEARN_TEST_NATS_URL")
    if given:
        yield given
    elif _containers_run(NATS_IMAGE):
        with _nats_container() as url:
            yield url
    else:
        server = EmbeddedNats(tmp_path_factory.mktemp("nats"))
        server.start()
        yield server.url
        server.stop()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL superuser's URL, shared by the session: take a `fresh_database` rather than this."""
    given = os.environ.get("ELEARN_TEST_POSTGRES_URL")
    if given:
        yield given
    elif _containers_run(POSTGRES_IMAGE):
        with _postgres_container() as url:
            yield url
    else:
        server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
        server.start()
        yield server.url
        server.stop()


class _Databases:
    """Makes databases, copies of templates where possible, and drops them at the end."""

    def __init__(self, superuser_url: str) -> None:
        self._superuser_url = superuser_url
        self._run = secrets.token_hex(4)
        self._count = 0
        self._made: list[str] = []
        self._templates: dict[Prepare, str] = {}

    def _url(self, name: str) -> str:
        return urlunsplit(urlsplit(self._superuser_url)._replace(path=f"/{name}"))

    async def _make(self, template: str) -> str:
        self._count += 1
        name = f"test_{self._run}_{self._count}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        self._made.append(name)
        return name

    async def _execute(self, *statements: str) -> None:
        connection = await asyncpg.connect(self._superuser_url, timeout=30)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def __call__(self, prepare: Prepare | None = None) -> str:
        if prepare is None:
            return self._url(await self._make("template0"))
        template = self._templates.get(prepare)
        if template is None:
            template = await self._make("template0")
            await prepare(self._url(template))
            self._templates[prepare] = template
        return self._url(await self._make(template))

    async def drop_all(self) -> None:
        await self._execute(*(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in self._made))


@pytest.fixture(scope="session")
def fresh_database(postgres_url: str) -> Iterator[FreshDatabase]:
    """A function that makes databases: `url = await fresh_database()`; they live until the session's end."""
    databases = _Databases(postgres_url)
    yield databases
    run_apart(databases.drop_all())


@pytest.fixture
async def database_url(fresh_database: FreshDatabase) -> str:
    """An empty database for one test."""
    return await fresh_database()
