"""A command line that talks to a gateway of the test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import stamina
import stamina.instrumentation

from elearn.cli.main import run
from tests.unit.cli.gateway import TOKEN, Gateway, running_gateway


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with running_gateway() as found:
        yield found


@pytest.fixture
def command(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Command]:
    """Runs one command; it finds the gateway by its environment."""
    monkeypatch.setenv("ELEARN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ELEARN_URL", gateway.url)
    monkeypatch.setenv("ELEARN_TOKEN", TOKEN)
    monkeypatch.delenv("ELEARN_PROJECT", raising=False)

    def execute(*arguments: str) -> Ran:
        capsys.readouterr()
        status = run(arguments)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    with stamina.set_testing(True, attempts=2, cap=True):
        yield execute
    stamina.instrumentation.set_on_retry_hooks(None)
