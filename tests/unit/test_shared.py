"""Codec, settings, cursors, errors, causes and supervision."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from shared import context
from shared.codec import decode_json
from shared.contracts.datastore import DatastoreSpec
from shared.contracts.problem import FieldError
from shared.contracts.training import TrainingSpec
from shared.errors import Conflict, Internal, Invalid, Malformed, NotFound, Unavailable, from_problem
from shared.paging import decode_cursor, encode_cursor
from shared.settings import ServiceSettings, SettingsError, load
from shared.supervise import BackgroundTaskEndedError, Supervisor, Wake, retrying


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b'{"name": "a", "command": ["x"], "rolls": {}}', "rolls", "unknown field"),
        (b'{"name": "a", "command": ["x"], "roles": {"worker": {"cpus": 1}}}', "roles.worker.cpus", "unknown field"),
        (b'{"name": "a"}', "command", "required"),
        (b'{"name": "a", "command": []}', "command", "length >= 1"),
        (b'{"name": "A b", "command": ["x"]}', "name", "must be a name"),
        (b'{"name": "a", "command": ["x", 3]}', "command.1", "expected `str`, got `int`"),
        (b'{"name": "a", "command": ["x"], "mounts": [{"path": "p"}]}', "mounts.0.datastore", "required"),
        (b'{"name": "a", "command": ["x"], "env": {"A": 1}}', "env", "expected `str`, got `int`"),
        (b"[]", "body", "expected `object`, got `array`"),
    ],
)
def test_a_misfit_is_named_by_its_field(body: bytes, field: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode_json(TrainingSpec, body)
    assert caught.value.status == 422
    (error,) = caught.value.errors
    assert re.sub(r"\.\*$", "", error.field) == field
    assert words in error.message


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"name: a", b'{"name": "a"}}'])
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        decode_json(DatastoreSpec, body)


def test_nesting_without_end_is_malformed() -> None:
    with pytest.raises((Malformed, Invalid)):
        decode_json(TrainingSpec, b'{"labels":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@pytest.mark.parametrize(
    "error",
    [
        Invalid.field("name", "is taken"),
        NotFound("no training digits-1"),
        Conflict("it runs"),
        Unavailable("the database is away", retry=7),
    ],
)
def test_an_error_survives_the_way_over_the_bus(error: Invalid) -> None:
    problem = msgspec.json.decode(msgspec.json.encode(error.problem()), type=type(error.problem()))
    again = from_problem(problem)
    assert type(again) is type(error)
    assert (again.detail, again.errors, again.retry_after) == (error.detail, error.errors, error.retry_after)


def test_an_unknown_problem_keeps_its_status_or_is_internal() -> None:
    known = NotFound("gone").problem()
    assert isinstance(from_problem(msgspec.structs.replace(known, type="urn:other")), NotFound)
    assert isinstance(from_problem(msgspec.structs.replace(known, type="urn:other", status=418)), Internal)


def test_several_fields_at_once() -> None:
    error = Invalid.of([FieldError(field="a", message="x"), FieldError(field="b", message="y")])
    assert error.detail == "a: x (and 1 more)"
    assert len(error.problem().errors) == 2


class Settings(ServiceSettings, frozen=True, kw_only=True):
    roots: tuple[Path, ...] = ()
    seconds: float = 1.5


def test_settings_come_from_the_environment() -> None:
    environ = {
        "ELEARN_NATS_URL": "nats://x",
        "ELEARN_POSTGRES_URL": "postgresql://y",
        "ELEARN_ROOTS": "/a:~/b",
        "ELEARN_SECONDS": "2",
        "ELEARN_POOL_SIZE": "",
    }
    settings = load(Settings, environ)
    assert settings.roots == (Path("/a"), Path.home() / "b")
    assert settings.seconds == 2.0
    assert settings.pool_size == 6
    assert settings.home == Path.home() / ".elearn"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "ELEARN_NATS_URL is not set"),
        ({"ELEARN_NATS_URL": "x", "ELEARN_POSTGRES_URL": "y", "ELEARN_SECONDS": "soon"}, "ELEARN_SECONDS"),
    ],
)
def test_settings_that_can_not_be_read_are_named(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        load(Settings, environ)


def test_cursors_come_back_as_they_went() -> None:
    assert decode_cursor(encode_cursor("digits-1", 7), str, int) == ("digits-1", 7)
    assert decode_cursor(None, str) is None


@pytest.mark.parametrize("cursor", ["", "x", "ä", encode_cursor("a"), encode_cursor(1, 1), "e30", "[" * 50])
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode_cursor(cursor, str, int)
    assert caught.value.errors[0].field == "cursor"


def test_a_cause_travels_in_headers() -> None:
    cause = context.Cause(actor="ada", traceparent=context.continued_trace(None), causation="e1", idempotency_key="k")
    assert context.Cause.from_headers(cause.headers()) == cause
    with context.caused_by(cause):
        assert context.current() is cause
    assert context.current().actor == ""


def test_a_broken_trace_is_replaced() -> None:
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", context.continued_trace("00-zz"))


async def test_a_background_task_that_returns_ends_the_service() -> None:
    async def quiet() -> None:
        return

    async with Supervisor() as supervisor:
        supervisor.forever("quiet", quiet())
        with pytest.raises(BackgroundTaskEndedError, match="quiet"):
            await supervisor.wait(asyncio.Event().wait())


async def test_a_background_task_that_raises_ends_the_service_with_its_error() -> None:
    async def broken() -> None:
        raise ValueError("no")

    async with Supervisor() as supervisor:
        supervisor.forever("broken", broken())
        with pytest.raises(ValueError, match="no"):
            await supervisor.wait(asyncio.Event().wait())


async def test_stopping_cancels_every_task() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    stop = asyncio.Event()
    async with Supervisor() as supervisor:
        for name in ("a", "b"):
            supervisor.forever(name, work(name))
        asyncio.get_running_loop().call_soon(stop.set)
        await supervisor.wait(stop.wait())
    assert sorted(ended) == ["a", "b"]


async def test_rings_while_nobody_listens_are_kept_as_one() -> None:
    wake = Wake()
    wake.ring()
    wake.ring()
    assert await wake.wait(1)
    assert not await wake.wait(0.001)


async def test_retrying_goes_on_after_the_named_errors_and_no_others() -> None:
    seen: list[int] = []

    async def attempt() -> None:
        seen.append(len(seen))
        raise ConnectionError("away") if len(seen) < 3 else ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await retrying("work", attempt, on=(ConnectionError,), first=0.001)
    assert seen == [0, 1, 2]


def test_a_log_that_can_not_be_written_ends_nothing() -> None:
    program = (
        "import logging, structlog; from shared import logs\n"
        "logs.configure('room', 'info', 'json')\n"
        "structlog.get_logger().error('told'); logging.getLogger('other').error('told')\n"
        "print('went on')\n"
    )
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, check=False)
    assert ran.stdout == b"went on\n"
