"""Bringing the platform of a home up and down, and looking at it: what the command line calls."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from elearn.up import errors, health, logfiles
from elearn.up.files import read_struct, write_atomically
from elearn.up.home import Home, unusable
from elearn.up.services import SERVICES
from elearn.up.state import (
    Event,
    Failed,
    ProcessState,
    Ready,
    ServiceState,
    ServiceStatus,
    State,
    Status,
)
from shared.local.identity import is_alive, send

SUPERVISOR: Sequence[str] = (sys.executable, "-P", "-m", "elearn.up")
_SERVERS = ("nats", "postgres")
_DOWN_SECONDS = 90.0


def _quiet(event: Event) -> None:
    del event


def up(
    home: Path | None = None,
    port: int | None = None,
    detach: bool = False,
    *,
    report: Callable[[Event], None] = _quiet,
    supervisor: Sequence[str] = SUPERVISOR,
) -> Status:
    """Bring the platform up.

    With ``detach`` it returns when everything is ready. Without, it returns when everything has been
    brought down again, which SIGINT (Ctrl-C), SIGTERM or SIGHUP to this process begins.

    Args:
        home: None: $ELEARN_HOME, else ~/.elearn.
        port: the gateway's; None: the one it had before, else 8470; 0: any free one.
        report: told each change of a process, and :class:`Ready` once, in the calling thread.
        supervisor: the command that supervises.

    Raises:
        UpError: it could not be brought up, in one line; nothing is left running.
    """
    if sys.platform != "linux":
        raise errors.UpError("`elearn up` needs Linux: use Docker (docker compose up) on this machine")
    place = Home.find(home)
    with _in_words(place):
        place.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.logs.mkdir(mode=0o700, exist_ok=True)
        log = os.fdopen(logfiles.open_log(place.log("supervisor")), "ab")
    with log:
        process = subprocess.Popen(
            [*supervisor, str(place.root), *(() if port is None else (str(port),))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "ELEARN_HOME": str(place.root)},
            cwd=place.root,
            start_new_session=True,  # a Ctrl-C in the terminal reaches us alone, and we tell it
        )
    reaping = threading.Thread(target=process.wait, name="supervisor's end", daemon=True)
    reaping.start()  # also when we return before it ends: no zombie is left
    with _pipes(process) as (tell, hear), _signals_passed_to(process):
        last = _listen(hear, detach, report)
        if isinstance(last, Ready) and detach:
            tell.write(b"detach\n")
        else:
            reaping.join()
    if isinstance(last, Failed):
        kind = getattr(errors, last.kind, errors.UpError)
        raise kind(last.detail)
    if process.returncode:
        raise errors.StartError(f"the supervisor ended unexpectedly; see {place.log('supervisor')}")
    if not isinstance(last, Ready):
        raise errors.StartError("told to stop before everything was ready")
    return status(place.root)


@contextlib.contextmanager
def _pipes(process: subprocess.Popen[bytes]) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a supervisor without pipes")
    try:
        yield process.stdin, process.stdout
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # unless told to detach, it ends now
        process.stdout.close()


@contextlib.contextmanager
def _signals_passed_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand on what asks this process to end, for as long as it stands for the supervisor."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _listen(hear: IO[bytes], detach: bool, report: Callable[[Event], None]) -> Ready | Failed | None:
    """Pass on what the supervisor says, to its end or until it may be left alone; what mattered most of it."""
    ready: Ready | None = None
    for line in hear:
        event = msgspec.json.decode(line, type=Event)
        if isinstance(event, Failed):
            return event
        if isinstance(event, Ready):
            ready = event
        report(event)
        if ready is not None and detach:
            break
    return ready


def down(home: Path | None = None) -> bool:
    """End everything of a home: services, tasks of trainings, model servers, NATS and PostgreSQL. Data stays.

    Returns:
        Whether anything was up.

    Raises:
        UpError: another process owns the home and does not end, or the home is somebody else's.
    """
    place = Home.find(home)
    with _in_words(place):
        if not place.root.is_dir():
            return False
        was_up = _end_supervisor(place)
    # Imported when needed: it loads the database's client, which no other command wants to wait for.
    from elearn.up import leftovers

    with _in_words(place), place.locked():
        known = read_struct(place.state, State)
        was_up |= leftovers.end_processes(place, known)
        leftovers.end_tasks(place)
        if known is not None and known.services:
            write_atomically(place.state, msgspec.json.encode(State(ports=known.ports, cloud=known.cloud)))
    return was_up


def cloud(home: Path | None = None) -> str:
    """Where tasks run, or ran when the platform was up; ``local``, where nothing is known.

    Raises:
        HomeError: the record of what runs is damaged, or somebody else's.
    """
    place = Home.find(home)
    with _in_words(place):
        known = read_struct(place.state, State) if place.root.is_dir() else None
    return known.cloud if known is not None else "local"


@contextlib.contextmanager
def _in_words(place: Home) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unusable(place.root, error) from error


def _end_supervisor(place: Home) -> bool:
    deadline = time.monotonic() + _DOWN_SECONDS
    if not place.is_locked():
        return False
    while place.is_locked() and time.monotonic() < deadline:
        owner = place.owner()
        if owner is not None:
            send(owner, signal.SIGTERM)
            ended = time.monotonic() + 1.0
            while is_alive(owner) and time.monotonic() < min(ended, deadline):
                time.sleep(0.01)
        else:
            time.sleep(0.01)
    owner = place.owner()
    if owner is not None:
        send(owner, signal.SIGKILL)
    return True


def status(home: Path | None = None) -> Status:
    """What is up, asked now.

    Raises:
        HomeError: the record of what runs is damaged, or somebody else's.
    """
    place = Home.find(home)
    with _in_words(place):
        known = read_struct(place.state, State) if place.root.is_dir() else None
        supervised = place.is_locked()
    recorded = {each.name: each for each in known.services} if known else {}
    health_ports = known.ports.health if known else {}
    names = (*SERVICES, *_SERVERS)
    with concurrent.futures.ThreadPoolExecutor(len(names)) as asking:
        services = tuple(
            asking.map(lambda name: _service_status(name, recorded.get(name), health_ports.get(name)), names)
        )
    ready = supervised and all(each.state == "ready" for each in services)
    running = known if supervised else None
    return Status(
        ready=ready,
        url=f"http://127.0.0.1:{running.ports.api}" if running else None,
        services=services,
        nats_url=f"nats://127.0.0.1:{running.ports.nats}" if running else None,
        nats_url_file=str(place.nats_url) if running else None,
        home=str(place.root),
        token_file=str(place.token),
    )


def _service_status(name: str, known: ServiceState | None, health_port: int | None) -> ServiceStatus:
    if known is None:
        return ServiceStatus(name=name, pid=None, state="stopped")
    pid: int | None = None
    state: ProcessState = known.state
    reason = known.reason
    if known.process is not None and is_alive(known.process):
        pid = known.process.pid
        if state == "ready" and health_port is not None:
            reason = health.lack(health_port)
            state = "ready" if reason is None else "unready"
    elif state != "stopped":
        state = "restarting"
    return ServiceStatus(name=name, pid=pid, state=state, restarts=known.restarts, reason=reason)
