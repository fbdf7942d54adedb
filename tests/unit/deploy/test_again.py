"""What keeps a service running within its container, and what asks whether it is ready."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[3] / "deploy" / "docker"
PYTHON = (sys.executable, "-I", "-S")


def _again(script: str) -> "subprocess.Popen[str]":
    command = [*PYTHON, str(DOCKER / "again.py"), *PYTHON, "-c", script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_is_killed_is_started_again_until_it_is_told_to_end() -> None:
    script = "import os, signal, time; print(os.getpid(), flush=True); time.sleep(60)"
    with _again(script) as process:
        first = int(_line(process))
        os.kill(first, signal.SIGKILL)
        second = int(_line(process))
        assert second != first
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "ended with 137; starting it again" in said


def test_an_orderly_end_is_reported() -> None:
    script = (
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True)\n"
        "while True: signal.pause()"
    )
    with _again(script) as process:
        assert _line(process) == "up"
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 0


def test_being_told_to_end_while_it_waits_ends_it() -> None:
    with _again("raise SystemExit(3)") as process:
        assert process.stderr is not None
        assert "ended with 3; starting it again in" in process.stderr.readline()
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode in (0, 3, 128 + signal.SIGTERM)


def test_the_machine_reaps_and_ends_when_told() -> None:
    script = (
        "import os, runpy, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})\n"  # as it does itself, only sooner
        "child = os.fork()\n"
        "if child == 0: os._exit(0)\n"
        "print(child, flush=True)\n"
        f"runpy.run_path({str(DOCKER / 'machine.py')!r}, run_name='__main__')\n"
    )
    with subprocess.Popen([*PYTHON, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        orphan = Path(f"/proc/{int(_line(process))}")
        deadline = time.monotonic() + 20
        while orphan.exists():
            assert time.monotonic() < deadline, "an ended child is not reaped"
        process.terminate()
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("host", "status", "code"),
    [
        ("127.0.0.1", "200 OK", 0),
        ("127.0.0.1", "503 Service Unavailable", 1),
        ("0.0.0.0", "200 OK", 0),  # noqa: S104 - nothing listens
        ("*", "200 OK", 0),
    ],
)
def test_readiness_is_the_services_own(host: str, status: str, code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(f"HTTP/1.0 {status}\r\n\r\nwords".encode())

        answering = threading.Thread(target=answer)
        answering.start()
        environment = {"ELEARN_HEALTH_HOST": host, "ELEARN_HEALTH_PORT": str(server.getsockname()[1])}
        command = [*PYTHON, str(DOCKER / "healthy.py")]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
        answering.join()
    assert (ran.returncode, ran.stdout.strip()) == (code, "words")


def test_nobody_there_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [*PYTHON, str(DOCKER / "healthy.py")]
    ran = subprocess.run(command, env={"ELEARN_HEALTH_PORT": str(port)}, capture_output=True, timeout=20, check=False)
    assert ran.returncode == 1
