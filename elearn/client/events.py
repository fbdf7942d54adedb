"""Server-sent events: read as they come, gone on with after a lost connection."""

import time
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from elearn.client.transport import Transport, lines_of
from shared.contracts.event import Event
from shared.errors import Internal, Unavailable

_QUIET: Final = 45.0
"""Seconds without even a comment after which a connection counts as lost; the gateway sends one each 15."""


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
        if since is None and not follow:
            since = 0
        while True:
            began = time.monotonic()
            headers = {"Accept": "text/event-stream"}
            if last is not None:
                headers["Last-Event-ID"] = last
            query = {"since": since, "subject": subject, "follow": None if follow else False}
            try:
                with self._transport.stream(self._path, query=query, headers=headers, quiet=_QUIET) as response:
                    for frame in frames(lines_of(response.iter_bytes())):
                        event = _decoded(frame)
                        if event is not None:
                            yield event
                        last = frame.id or last
            except Unavailable:
                # Opening has been tried for as long as patience goes: only what broke later is gone on with.
                if time.monotonic() - began < 1.0:
                    raise
                continue
            if not follow:
                return
            time.sleep(0.2)  # the gateway ended it in good order: it is being restarted


def _decoded(frame: Frame) -> Event | None:
    try:
        return msgspec.json.decode(frame.data, type=Event)
    except msgspec.DecodeError as error:
        raise Internal(f"the gateway sent an event that this client does not understand: {error}") from error
