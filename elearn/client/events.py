"""Server-sent events: read as they come, gone on with after a lost connection."""

import time
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from elearn.client.transport import Query, Transport, lines_of
from shared.contracts.event import Event
from shared.contracts.problem import Problem
from shared.errors import Internal, Unavailable, from_problem

_QUIET: Final = 45.0
"""Seconds without even a comment after which a connection counts as lost; the gateway sends one each 15."""
_PAUSE: Final = 0.2


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One dispatched server-sent event."""

    data: str
    id: str | None = None
    event: str = "message"


def frames(lines: Iterable[str]) -> Iterator[Frame]:
    """Server-sent events out of the lines of a stream, as the HTML standard cuts them."""
    data: list[str] = []
    identity: str | None = None
    kind = "message"
    for line in lines:
        if not line:
            if data:
                yield Frame(data="\n".join(data), id=identity, event=kind)
            data, kind = [], "message"
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data.append(value)
        elif field == "event":
            kind = value
        elif field == "id" and "\0" not in value:
            identity = value


class Events:
    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._path = f"{base}/events"

    def stream(
        self, since: str | int | None = None, subject: str | None = None, *, follow: bool = True
    ) -> Iterator[Event]:
        """See :meth:`elearn.Client.events`."""
        last: str | None = None
        query: Query = {"since": since, "subject": subject, "follow": None if follow else False}
        while True:
            opened = False
            headers = {"Accept": "text/event-stream"}
            if last is not None:
                headers["Last-Event-ID"] = last
            try:
                with self._transport.stream(self._path, query=query, headers=headers, quiet=_QUIET) as response:
                    opened = True
                    for frame in frames(lines_of(response.iter_bytes())):
                        yield _event_of(frame)
                        last = frame.id or last
                if not follow:
                    return
            except Unavailable:
                if not opened:
                    raise  # it has been tried for as long as patience goes
            time.sleep(_PAUSE)  # the gateway ended it, as it does when it is restarted


def _event_of(frame: Frame) -> Event:
    """The event in a frame.

    Raises:
        ElearnError: the gateway says that there will be no more, and why.
    """
    try:
        if frame.event == "error":
            raise from_problem(msgspec.json.decode(frame.data, type=Problem))
        return msgspec.json.decode(frame.data, type=Event)
    except msgspec.DecodeError as error:
        raise Internal(f"the gateway sent an event that this client does not understand: {error}") from error
