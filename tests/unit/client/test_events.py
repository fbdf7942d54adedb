"""Server-sent events: cut as the standard says, gone on with where they broke off."""

from collections.abc import Callable, Iterator

import httpx
import msgspec
import pytest

from elearn.client import Client
from elearn.client.events import Frame, frames
from shared.errors import Forbidden, Internal, Unavailable
from tests.unit.client.conftest import Answer

ClientOf = Callable[[Answer], Client]


def text_of(sequence: int) -> bytes:
    event = {
        "id": f"e{sequence}",
        "source": "scheduler",
        "type": "elearn.v1.training.running",
        "subject": "elearn.v1.training.running.search.digits-1",
        "time": "2026-01-31T12:00:00Z",
        "data": {"reason": "a\u2028b"},
        "sequence": sequence,
    }
    return b"id: %d\ndata: %s\n\n" % (sequence, msgspec.json.encode(event))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["data: a", ""], [Frame(data="a")]),
        (["data:a", "data: b", ""], [Frame(data="a\nb")]),
        ([": comment", "", "retry: 2000", ""], []),
        (
            ["id: 7", "event: error", "data: x", "", "data: y", ""],
            [Frame(data="x", id="7", event="error"), Frame(data="y", id="7")],
        ),
        (["data", ""], [Frame(data="")]),
        (["data: half"], []),
        (["data:  two spaces", ""], [Frame(data=" two spaces")]),
    ],
)
def test_frames(lines: list[str], expected: list[Frame]) -> None:
    assert list(frames(lines)) == expected


def test_events_go_on_after_the_last_one_that_was_seen(client_of: ClientOf) -> None:
    asked: list[tuple[str | None, str | None]] = []

    def broken() -> Iterator[bytes]:
        yield b": elearn\n\n" + text_of(3)
        yield text_of(4)[:20]
        raise httpx.ReadError("Connection reset by peer")

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.params.get("since"), request.headers.get("Last-Event-ID")))
        if len(asked) == 1:
            return httpx.Response(200, content=broken())
        if len(asked) == 2:
            return httpx.Response(200, content=text_of(4) + text_of(5))  # the gateway is restarted
        return httpx.Response(200, content=text_of(6))

    events = client_of(answer).events(since=2)
    assert [next(events).sequence for _ in range(4)] == [3, 4, 5, 6]
    assert asked == [("2", None), ("2", "3"), ("2", "5")]


def test_a_replay_ends_where_the_gateway_ends_it(client_of: ClientOf) -> None:
    asked: list[dict[str, str]] = []

    def broken() -> Iterator[bytes]:
        yield text_of(1)
        raise httpx.RemoteProtocolError("incomplete chunked read")

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(dict(request.url.params))
        if len(asked) == 1:
            return httpx.Response(200, content=broken())
        assert request.headers["Last-Event-ID"] == "1"
        return httpx.Response(200, content=text_of(2))

    found = list(client_of(answer).events(follow=False))
    assert [event.sequence for event in found] == [1, 2]
    assert asked == [{"follow": "false"}] * 2
    assert msgspec.json.decode(found[0].data) == {"reason": "a\u2028b"}


def test_a_gateway_that_does_not_answer_is_no_end_of_a_replay(client_of: ClientOf) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("timed out", request=request)

    with pytest.raises(Unavailable):
        list(client_of(answer).events(follow=False))


def test_a_slow_reader_that_was_cut_off_connects_again(client_of: ClientOf) -> None:
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        if len(asked) == 1:
            return httpx.Response(
                200,
                content=text_of(1)
                + b'event: error\ndata: {"type":"urn:elearn:problem:unavailable","title":"t",'
                + b'"status":503,"detail":"slow"}\n\n',
            )
        return httpx.Response(200, content=text_of(2))

    events = client_of(answer).events()
    assert [next(events).sequence, next(events).sequence] == [1, 2]
    assert asked == [None, "1"]


def test_what_the_gateway_gives_up_is_raised(client_of: ClientOf) -> None:
    body = b'event: error\ndata: {"type":"urn:elearn:problem:forbidden","title":"t","status":403,"detail":"gone"}\n\n'
    with pytest.raises(Forbidden, match="gone"):
        next(client_of(lambda _: httpx.Response(200, content=body)).events())


def test_an_event_of_another_time_is_told(client_of: ClientOf) -> None:
    with pytest.raises(Internal, match="does not understand"):
        next(client_of(lambda _: httpx.Response(200, content=b"data: {}\n\n")).events())
