"""The embedded platform with real NATS and PostgreSQL, and stand-ins for the five services."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import msgspec
import nats
import pytest

from elearn import up as platform
from elearn.up import errors, proc
from elearn.up.home import Home, Secrets
from elearn.up.services import SERVICES
from elearn.up.state import Event, Progress, Ready, State, Status
from shared.local.identity import identify, is_alive
from shared.local.processes import LocalProcesses, ProcessSpec, processes_root

STANDIN = str(Path(__file__).parents[1] / "support" / "up_standin.py")
SUPERVISOR = (sys.executable, STANDIN, "supervisor")


def up(home: Path, report: Callable[[Event], None] = lambda event: None, port: int | None = 0) -> Status:
    return platform.up(home, port, True, report=report, supervisor=SUPERVISOR)


def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.005)


def pid_of(status: Status, name: str) -> int:
    pid = next(each.pid for each in status.services if each.name == name)
    assert pid is not None
    return pid


def left_running(home: Path) -> list[list[str]]:
    """Command lines of all that runs with this home or in it."""
    found = []
    for pid in proc.all_pids():
        try:
            folder = str(Path(f"/proc/{pid}/cwd").readlink())
        except OSError:
            continue
        if proc.environment(pid).get("ELEARN_HOME") == str(home) or folder.startswith(str(home)):
            found.append(proc.arguments(pid))
    return found


def secrets_of(home: Path) -> Secrets:
    return msgspec.json.decode(Home(home).secrets.read_bytes(), type=Secrets)


def ports_of(home: Path) -> State:
    return msgspec.json.decode(Home(home).state.read_bytes(), type=State)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A platform that is up; tests leave it up and whole."""
    home = tmp_path_factory.mktemp("a home") / "with spaces"
    up(home)
    yield home
    platform.down(home)
    assert left_running(home) == []


@pytest.fixture(scope="module")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose data is there already, so that bringing it up is quick."""
    home = tmp_path_factory.mktemp("made") / "home"
    up(home)
    platform.down(home)
    return home


@pytest.fixture
def own_home(made_home: Path) -> Iterator[Path]:
    """A home that is down before the test, and afterwards whatever happens."""
    yield made_home
    platform.down(made_home)
    assert left_running(made_home) == []
    for orders in made_home.glob("*.does"):
        orders.unlink()


def test_status_says_what_is_up(home: Path) -> None:
    status = platform.status(home)
    assert status.ready
    assert {each.name for each in status.services} == {*SERVICES, "nats", "postgres"}
    assert {each.state for each in status.services} == {"ready"}
    assert all(Path(f"/proc/{each.pid}").exists() for each in status.services)
    assert status.url == f"http://127.0.0.1:{ports_of(home).ports.api}"


def test_secrets_are_for_the_owner_and_in_no_command_line(home: Path) -> None:
    for path in (home / "token", home / "secrets.json", home / "nats" / "nats.conf", home / "nats" / "url"):
        assert path.stat().st_mode & 0o077 == 0, path
    secrets = secrets_of(home)
    hidden = [*secrets.nats.values(), *secrets.postgres.values(), (home / "token").read_text().strip()]
    for pid in proc.all_pids():
        words = " ".join(proc.arguments(pid))
        assert not any(secret in words for secret in hidden)
    for log in (home / "logs").iterdir():
        assert not any(secret in log.read_text() for secret in hidden), log


def test_only_loopback_is_listened_on(home: Path) -> None:
    ports = ports_of(home).ports
    mine = {ports.nats, ports.postgres}
    heard = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else []:
            address, port = line.split()[1].rsplit(":", 1)
            if line.split()[3] == "0A" and int(port, 16) in mine:
                heard.add((address, int(port, 16)))
    assert heard == {("0100007F", port) for port in mine}


async def test_a_service_enters_its_own_database_only(home: Path) -> None:
    secrets, ports = secrets_of(home), ports_of(home).ports
    address = f"postgresql://scheduler:{secrets.postgres['scheduler']}@127.0.0.1:{ports.postgres}"
    for other in ("registry", "postgres", "template1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(f"{address}/{other}")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            f"postgresql://registry:{secrets.postgres['scheduler']}@127.0.0.1:{ports.postgres}/registry"
        )
    connection = await asyncpg.connect(f"{address}/scheduler")
    await connection.execute("CREATE TABLE own (one int)")
    await connection.execute("DROP TABLE own")
    await connection.close()


async def test_bus_users_have_what_they_need_and_no_more(home: Path) -> None:
    secrets, ports = secrets_of(home), ports_of(home).ports
    address = f"127.0.0.1:{ports.nats}"
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.nats)
    writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    assert b"Authorization Violation" in await reader.read()
    writer.close()
    await writer.wait_closed()
    refusals: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        refusals.put_nowait(str(error).lower())

    service = await nats.connect(
        f"nats://registry:{secrets.nats['registry']}@{address}", inbox_prefix="_INBOX_registry", error_cb=note
    )
    stream = await service.jetstream().add_stream(name="ELEARN", subjects=["elearn.v1.>"])
    assert stream.config.name == "ELEARN"
    pipeline = await nats.connect((home / "nats" / "url").read_text().strip(), error_cb=note)
    heard = await pipeline.subscribe("elearn.v1.version.>")
    reading = await pipeline.jetstream().pull_subscribe("elearn.v1.>", stream="ELEARN")
    await pipeline.publish("elearn.v1.data.arrived.default.digits", b"{}")
    await pipeline.flush()
    await service.jetstream().publish("elearn.v1.version.ready.default.digits", b"{}")
    assert (await heard.next_msg(5)).subject == "elearn.v1.version.ready.default.digits"
    # A stream stores what two connections publish in either order.
    subjects = {message.subject for message in await reading.fetch(2, timeout=5)}
    assert subjects == {"elearn.v1.data.arrived.default.digits", "elearn.v1.version.ready.default.digits"}
    assert refusals.empty()
    await pipeline.publish("elearn.v1.training.succeeded.default.digits-1", b"{}")
    await service.subscribe("elearn.rpc.scheduler.submit")
    async with asyncio.timeout(10):
        said = {await refusals.get(), await refusals.get()}
    assert {each.partition('"')[2].strip('"') for each in said} == {
        "elearn.v1.training.succeeded.default.digits-1",
        "elearn.rpc.scheduler.submit",
    }
    await service.jetstream().delete_stream("ELEARN")
    await pipeline.close()
    await service.close()


@pytest.mark.parametrize("name", [*SERVICES, "nats", "postgres"])
def test_what_is_killed_comes_back(home: Path, name: str) -> None:
    before = platform.status(home)
    os.kill(pid_of(before, name), signal.SIGKILL)
    until(lambda: (now := platform.status(home)).ready and pid_of(now, name) != pid_of(before, name), "restarted")
    after = platform.status(home)
    others = [each.name for each in before.services if each.name != name]
    assert [pid_of(after, each) for each in others] == [pid_of(before, each) for each in others]


def test_a_service_that_lacks_something_is_told(home: Path) -> None:
    (home / "serving.does").write_text("unready")
    status = platform.status(home)
    (home / "serving.does").unlink()
    assert not status.ready
    (serving,) = [each for each in status.services if each.name == "serving"]
    assert (serving.state, serving.reason) == ("unready", "the database is away")


def test_a_second_up_is_refused_and_harms_nothing(home: Path) -> None:
    before = platform.status(home)
    with pytest.raises(errors.AlreadyRunningError, match="already up"):
        up(home)
    assert platform.status(home) == before


async def test_data_ports_and_token_survive_down_and_up(own_home: Path) -> None:
    events: list[Event] = []
    first = up(own_home, events.append)
    assert [each for each in events if isinstance(each, Ready)] == events[-1:]
    assert {each.name for each in events if isinstance(each, Progress) and each.state == "ready"} == {
        *SERVICES,
        "nats",
        "postgres",
    }
    token, secrets = (own_home / "token").read_text(), secrets_of(own_home)
    address = f"postgresql://api:{secrets.postgres['api']}@127.0.0.1:{ports_of(own_home).ports.postgres}/api"
    connection = await asyncpg.connect(address)
    await connection.execute("CREATE TABLE kept AS SELECT 7 AS seven")
    await connection.close()
    assert platform.down(own_home)
    assert left_running(own_home) == []
    down = platform.status(own_home)
    assert not down.ready
    assert down.url is None
    assert {each.state for each in down.services} == {"stopped"}
    assert not platform.down(own_home)
    second = up(own_home, port=None)
    assert second.url == first.url
    assert (own_home / "token").read_text() == token
    connection = await asyncpg.connect(address)
    assert await connection.fetchval("SELECT seven FROM kept") == 7
    await connection.close()


@pytest.mark.parametrize("then", ["down", "up"])
def test_a_killed_supervisor_leaves_nothing_that_is_not_found_again(own_home: Path, then: str) -> None:
    before = up(own_home)
    processes = [identify(pid_of(before, each.name)) for each in before.services]
    supervisor = Home(own_home).owner()
    assert supervisor is not None
    # A record that was not yet written when it happened must not matter.
    Home(own_home).state.write_text(json.dumps({**json.loads(Home(own_home).state.read_text()), "services": []}))
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: not Home(own_home).is_locked(), "the kernel to release the lock")
    assert not platform.status(own_home).ready
    if then == "up":
        after = up(own_home)
        assert after.ready
        assert after.url == before.url
    else:
        assert platform.down(own_home)
    assert not any(is_alive(each) for each in processes if each is not None)


def test_a_service_that_can_not_start_is_named_with_what_it_said(own_home: Path) -> None:
    (own_home / "registry.does").write_text("refuse")
    with pytest.raises(errors.StartError, match="registry ended with status 1: ELEARN_NONSENSE is not set"):
        up(own_home)
    assert left_running(own_home) == []


def test_a_taken_port_is_one_clear_line(own_home: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(errors.PortTakenError, match=f"port {port} belongs to another program"):
            up(own_home, port=port)
    assert left_running(own_home) == []


def test_a_home_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.HomeError, match="is not a folder"):
        up(tmp_path / "file")
    with pytest.raises(errors.HomeError, match="is not a folder"):
        up(tmp_path / "file" / "below")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_ends_everything_when_told(own_home: Path, number: int) -> None:
    program = (
        "import sys; from pathlib import Path; from elearn.up import up, Ready\n"
        "say = lambda event: isinstance(event, Ready) and print('ready', flush=True)\n"
        "status = up(Path(sys.argv[1]), 0, report=say, supervisor=sys.argv[2:])\n"
        "print('ended', status.ready, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(own_home), *SUPERVISOR], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert platform.status(own_home).ready
        process.send_signal(number)
        assert process.stdout.readline() == "ended False\n"
        assert process.wait(30) == 0
    assert left_running(own_home) == []


def test_the_foreground_killed_takes_everything_along(own_home: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from elearn.up import up, Ready\n"
        "say = lambda event: isinstance(event, Ready) and print('ready', flush=True)\n"
        "up(Path(sys.argv[1]), 0, report=say, supervisor=sys.argv[2:])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(own_home), *SUPERVISOR], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    until(lambda: left_running(own_home) == [], "the supervisor to notice")


async def test_a_new_password_is_given_and_a_lost_one_is_said_so(own_home: Path) -> None:
    secrets = secrets_of(own_home)
    kept = (own_home / "secrets.json").read_bytes()
    changed = {**secrets.postgres, "registry": "another-password-than-before"}
    (own_home / "secrets.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(secrets, postgres=changed)))
    up(own_home)
    port = ports_of(own_home).ports.postgres
    connection = await asyncpg.connect(f"postgresql://registry:another-password-than-before@127.0.0.1:{port}/registry")
    await connection.close()
    platform.down(own_home)
    (own_home / "secrets.json").unlink()
    with pytest.raises(errors.HomeError, match=r"another password than secrets\.json"):
        up(own_home)
    (own_home / "secrets.json").write_bytes(kept)
    assert up(own_home).ready


@pytest.mark.parametrize("by", ["the supervisor", "down after the supervisor was killed"])
async def test_tasks_are_ended_too(own_home: Path, by: str) -> None:
    up(own_home)
    tasks = LocalProcesses(processes_root(own_home, "scheduler"))
    task = f"{by.replace(' ', '-')}.chief-0"
    spec = ProcessSpec(
        argv=(sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"),
        env={},
        cwd=str(own_home),
        log=str(own_home / "task.log"),
    )
    process = (await tasks.start(task, spec)).task
    assert process is not None
    assert is_alive(process)
    if by != "the supervisor":
        supervisor = Home(own_home).owner()
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGKILL)
    assert platform.down(own_home)
    assert not is_alive(process)
    ended = await tasks.status(task)
    assert ended is not None
    assert ended.finished
