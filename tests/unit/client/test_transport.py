"""What one call sends, tries again and raises."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import httpx
import pytest
import stamina

from elearn.client import Client, Unreachable
from elearn.client.connection import Connection
from elearn.client.transport import Transport, lines_of
from shared.contracts.datastore import DatastoreSpec, Local
from shared.contracts.training import Usage
from shared.errors import Conflict, Internal, Invalid, NotFound, Unauthenticated, Unavailable
from tests.unit.client.conftest import Answer, problem, reply

USAGE = Usage(project="search", running=1, queued=0, cpu=2.0, memory=3, gpu=0, cpu_seconds=5.0, gpu_seconds=0.0)
MODEL = {"project": "search", "name": "m", "created_at": datetime(2026, 1, 1, tzinfo=UTC), "versions": 1}

ClientOf = Callable[[Answer], Client]


def test_a_request_carries_the_token_and_the_project(client_of: ClientOf) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        assert request.url.path == "/v1/projects/search/usage"
        return reply(USAGE)

    assert client_of(answer).usage() == USAGE


def test_pages_are_read_as_they_are_used(client_of: ClientOf) -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        at = int(request.url.params.get("cursor", "0"))
        return reply({"items": [MODEL, MODEL], "next": str(at + 1) if at < 2 else None})

    models = client_of(answer).models.list()
    next(models)
    assert asked == [{}]
    assert len(list(models)) == 5
    assert asked == [{}, {"cursor": "1"}, {"cursor": "2"}]


def test_a_page_that_names_itself_as_the_next_is_not_read_for_ever(client_of: ClientOf) -> None:
    with pytest.raises(Internal, match="same page"):
        list(client_of(lambda _: reply({"items": [MODEL], "next": "1"})).models.list())


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(404, "not-found", "there is no x"), NotFound),
        (problem(409, "conflict", "it runs"), Conflict),
        (problem(401, "unauthenticated", "show a token"), Unauthenticated),
        (problem(422, "something-newer", "no"), Invalid),
        (problem(418, "something-newer", "no"), Internal),
        (httpx.Response(404, text="<html>nginx"), NotFound),
        (httpx.Response(500, text="oops"), Internal),
        (httpx.Response(302, headers={"Location": "http://elsewhere"}), Internal),
        (reply({"unlike": "anything"}), Internal),
        (httpx.Response(200, text="<html>a hotel's wireless network"), Internal),
    ],
)
def test_answers_become_errors(client_of: ClientOf, answer: httpx.Response, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        client_of(lambda _: answer).usage()
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


def test_503_is_tried_again_under_the_same_key(client_of: ClientOf) -> None:
    keys: list[str] = []
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        seen.append(request.read())
        if len(keys) < 3:
            return problem(503, "unavailable", "NATS is away", **{"Retry-After": "1"})
        return reply(
            {
                "project": "search",
                "name": "d",
                "backend": "local",
                "spec": {"name": "d", "local": {"path": "/d"}},
                "state": "ready",
                "read_only": False,
                "created_at": datetime(2026, 1, 1, tzinfo=UTC),
            },
            201,
        )

    client = client_of(answer)
    client.datastores.create(DatastoreSpec(name="d", local=Local(path="/d")))
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len(set(seen)) == 1
    client.datastores.create({"name": "d", "local": {"path": "/d"}})
    assert keys[3] != keys[0]


def test_patience_ends(client_of: ClientOf) -> None:
    tries = 0

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        return problem(503, "unavailable", "PostgreSQL is away")

    with pytest.raises(Unavailable, match="PostgreSQL is away"):
        client_of(answer).usage()
    assert tries == 4


@pytest.fixture
def waits() -> Iterator[list[float]]:
    """Pauses pass at once, and are written down."""
    waited: list[float] = []
    with stamina.set_testing(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", waited.append)
        patch.setattr("elearn.client.transport.time.monotonic", lambda: sum(waited))
        yield waited


def asked(answer: Callable[[httpx.Request], httpx.Response], times: int = 1) -> None:
    connection = Connection(url="http://127.0.0.1:1", token="t")
    transport = Transport(connection, patience=30.0, inner=httpx.MockTransport(answer))
    for _ in range(times):
        transport.call("GET", "/v1/cluster", Usage)


def test_retry_after_is_honoured_within_patience(waits: list[float]) -> None:
    with pytest.raises(Unavailable):
        asked(lambda _: problem(503, "unavailable", "away", **{"Retry-After": "600"}))
    assert waits == [30.0]


def test_a_gateway_that_was_there_is_waited_for_longer_than_one_that_never_was(waits: list[float]) -> None:
    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused", request=request)

    with pytest.raises(Unreachable):
        asked(nobody)
    assert sum(waits) == pytest.approx(5.0, abs=0.1)

    waits.clear()
    answers = iter([reply(USAGE), problem(503, "unavailable", "I am ending", **{"Retry-After": "7"})])

    def ending(request: httpx.Request) -> httpx.Response:
        return next(answers, None) or nobody(request)

    with pytest.raises(Unreachable):
        asked(ending, times=2)
    assert waits[0] == 7.0
    assert sum(waits[1:]) == pytest.approx(20.0, abs=0.1), "counted from when nobody listened"


def test_what_is_refused_is_not_tried_again(client_of: ClientOf) -> None:
    tries = 0

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        return problem(409, "conflict", "no")

    with pytest.raises(Conflict):
        client_of(answer).trainings.stop("digits-1")
    assert tries == 1


def test_nobody_there_is_said_in_words(client_of: ClientOf) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused", request=request)

    with pytest.raises(Unreachable, match=r"elearn is not running at http://127\.0\.0\.1:1: start it with `elearn up`"):
        client_of(answer).usage()


def test_a_far_elearn_that_is_away_is_not_to_be_started_here() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Name or service not known", request=request)

    connection = Connection(url="https://far.example", token="t")
    with (
        Client.at(connection, transport=httpx.MockTransport(answer)) as client,
        pytest.raises(Unreachable, match=r"can't reach elearn at https://far\.example: Name or service"),
    ):
        client.usage()


def test_a_delete_whose_answer_was_lost_has_been_done(client_of: ClientOf) -> None:
    tries = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise httpx.RemoteProtocolError("Server disconnected", request=request)
        return problem(404, "not-found", "there is no such training")

    client_of(answer).trainings.delete("digits-1")
    with pytest.raises(NotFound):
        client_of(lambda _: problem(404, "not-found", "there is no such training")).trainings.delete("digits-1")


def test_what_breaks_off_while_it_is_read_is_unavailable(client_of: ClientOf) -> None:
    def body() -> Iterator[bytes]:
        yield b"first\nsec"
        raise httpx.ReadError("Connection reset by peer")

    lines = client_of(lambda _: httpx.Response(200, content=body())).trainings.logs("digits-1")
    assert next(lines) == "first"
    with pytest.raises(Unavailable, match="was lost: Connection reset"):
        next(lines)


@pytest.mark.parametrize("name", ["..", "a/../b", "A", ""])
def test_names_never_lead_elsewhere(client_of: ClientOf, name: str) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise AssertionError("nothing should have been asked")

    client = client_of(answer)
    for call in (client.trainings.get, client.datastores.get, client.models.get, client.servings.get):
        with pytest.raises(Invalid):
            call(name)
    with pytest.raises(Invalid):
        client.datastores.stat("d", f"a/../../{name}")


def test_lines_are_cut_at_line_feeds_alone() -> None:
    parts = [b"a\r\nb\x0bc\xe2\x80", b"\xa8d\n\n1/2\r2/2\nlast \xff"]
    assert list(lines_of(parts)) == ["a", "b\x0bc\u2028d", "", "1/2\r2/2", "last \ufffd"]


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    parts = (b"x" * 600_000 for _ in range(4))
    assert [len(line) for line in lines_of(parts)] == [1_200_000, 1_200_000]
