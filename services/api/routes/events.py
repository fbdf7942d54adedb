"""``/v1/projects/{project}/events``: lifecycle events as server-sent events, replayed and live."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

import msgspec
import structlog
from aiohttp import web

from services.api.subjects import narrowed, parse_since
from services.api.table import Call, Route
from shared.clock import now
from shared.codec import encode_json
from shared.contracts.event import Event
from shared.errors import ElearnError, Invalid, Unavailable

_log = structlog.get_logger(__name__)

_AHEAD: Final = 64
"""Events read ahead of a reader: what a stream costs in memory at most."""
_AT_A_TIME: Final = 16
_LINGER: Final = 30.0


class Events(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which events.

    Attributes:
        since: replay from here on: a sequence (those after it), a time, or a span such as `10m`.
        subject: only those on subjects like this one, such as `elearn.v1.training.failed.>`.
        follow: `false` ends with what has happened so far; without `since`, that is all that is kept.
    """

    since: str | None = None
    subject: str | None = None
    follow: bool = True


class _AllTold(Exception):
    """A replay that does not follow has come to its end."""


async def _get(call: Call[None, Events]) -> web.StreamResponse:
    subject = narrowed(call.query.subject, call.project)
    last = call.request.headers.get("Last-Event-ID")
    if last is not None and not re.fullmatch(r"\d{1,18}", last):
        raise Invalid.field("Last-Event-ID", "must be the id of an event of this stream: a number")
    since: int | datetime | None = None if call.query.follow else 0
    if last is not None:
        since = int(last)
    elif call.query.since is not None:
        since = parse_since(call.query.since, now())
    events = call.gateway.bus.events(since=since, subject=subject, follow=call.query.follow)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    )
    if call.is_head:
        await response.prepare(call.request)
        return response
    if not call.gateway.bus.up:
        raise Unavailable("the message bus (NATS) is away; try again")
    if call.gateway.event_streams >= call.gateway.settings.event_streams:
        raise Unavailable("too many event streams are open; try again later", retry=10)
    call.gateway.event_streams += 1
    try:
        with call.gateway.streaming():
            await _stream(call, response, events)
    finally:
        call.gateway.event_streams -= 1
    return response


async def _stream(call: Call[None, Events], response: web.StreamResponse, events: AsyncIterator[Event]) -> None:
    """Write events as they come, and a comment now and then where none come."""
    settings = call.gateway.settings
    ahead: asyncio.Queue[Event] = asyncio.Queue(_AHEAD)
    reading = asyncio.create_task(_read_ahead(events, ahead), name="event reader")
    last: int | None = None
    try:
        await response.prepare(call.request)
        await _write(response, b"retry: 2000\n: elearn\n\n", settings.slow_reader_seconds)
        while True:
            event = await _next(ahead, reading, settings.heartbeat_seconds)
            events_now = [] if event is None else [event, *_waiting(ahead)]
            text = b"".join(map(_text, events_now)) or b": still here\n\n"
            try:
                await _write(response, text, settings.slow_reader_seconds)
            except TimeoutError:
                _cut_off(call.request, last)
                return
            if events_now:
                last = events_now[-1].sequence
    except _AllTold:
        await response.write_eof()
    except ElearnError as error:
        if not response.prepared:
            raise
        await _write(response, _last_words(error), settings.slow_reader_seconds)
        await response.write_eof()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read_ahead(events: AsyncIterator[Event], ahead: "asyncio.Queue[Event]") -> None:
    async for event in events:
        await ahead.put(event)


async def _next(ahead: "asyncio.Queue[Event]", reading: "asyncio.Task[None]", seconds: float) -> Event | None:
    """The next event; None where none came for so many seconds.

    Raises:
        ElearnError: there will be none, because something is away.
        _AllTold: there will be none, because all have been told.
    """
    if ahead.empty():
        coming = asyncio.ensure_future(ahead.get())
        try:
            await asyncio.wait({coming, reading}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
        finally:
            if not coming.done():
                coming.cancel()
        if not reading.done():
            return None
        if ahead.empty():  # its last event may have come together with its end
            reading.result()
            raise _AllTold
    return ahead.get_nowait()


def _waiting(ahead: "asyncio.Queue[Event]") -> list[Event]:
    """Events that are there already: a replay writes several at a time."""
    return [ahead.get_nowait() for _ in range(min(ahead.qsize(), _AT_A_TIME))]


def _text(event: Event) -> bytes:
    mark = b"" if event.sequence is None else b"id: %d\n" % event.sequence
    return mark + b"data: " + encode_json(event) + b"\n\n"


def _last_words(error: ElearnError) -> bytes:
    return b"event: error\ndata: " + encode_json(error.problem()) + b"\n\n"


async def _write(response: web.StreamResponse, text: bytes, seconds: float) -> None:
    """Write, and wait until the reader has taken most of what was written.

    Raises:
        TimeoutError: it reads too slowly.
    """
    async with asyncio.timeout(seconds):
        await response.write(text)


def _cut_off(request: web.Request, last: int | None) -> None:
    """Say why, behind all that is still on its way, and close; a reader that wakes finds it there."""
    transport = request.transport
    if transport is None:
        return
    _log.info("slow reader of events is cut off", path=request.path, last=last)
    text = _last_words(Unavailable("this reader was too slow and is cut off; connect again with the last event's id"))
    transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text))
    transport.close()
    asyncio.get_running_loop().call_later(_LINGER, transport.abort)


ROUTES = (
    Route(
        method="GET",
        path="/v1/projects/{project}/events",
        operation="streamEvents",
        noun="event",
        summary="Lifecycle events of a project as server-sent events (CloudEvents in JSON)",
        handle=_get,
        scope="read",
        query=Events,
        reply=Event,
        gives="text/event-stream",
        reads={"Last-Event-ID": "Go on after the event with this id; goes before `since`."},
    ),
)
