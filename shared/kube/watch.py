"""A watch that never ends: list, then follow, whatever happens to the connection or the server.

Three nested generators, each with one duty: :func:`_stream` reads one watch request and knows only lines;
:func:`_changes` knows what the server's events and errors mean; :func:`watch` goes on for ever.

    event or fault                                  what follows
    ----------------------------------------------  ------------------------------------------------------------
    the server ends the stream (timeoutSeconds)     watch on from the last resourceVersion, at once
    the stream is cut, in the middle of a line too  the rest of the line is dropped; watch on after a pause
    silence for `idle` seconds                      taken for dead; watch on
    no connection, 5xx, 429, 401, 403               watch on after growing pauses; `trouble` is told why
    410, as an answer or as an event in the stream  list again; only differences are told, deletions included
    any other error event                           list again after a pause
    a list older than what was told                 not believed, `stale_lists` times; then it is (a restored backup)
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, Generic, TypeVar, overload

import msgspec
import structlog

from shared.errors import ElearnError, Invalid, Unavailable
from shared.kube.backoff import Backoff
from shared.kube.changes import Added, Change, Deleted, Identity, Modified, Synced, Told
from shared.kube.client import PAGE, Cluster
from shared.kube.connection import Query
from shared.kube.errors import Asked, Busy, Expired, Status, Unreachable, error_of
from shared.kube.known import Known, News
from shared.kube.names import Selector
from shared.kube.objects import HasMetadata, Partial
from shared.kube.resources import Resource

_log = structlog.get_logger(__name__)

S = TypeVar("S", bound=HasMetadata)
T = TypeVar("T")

Trouble = Callable[[ElearnError | None], None]

_REFUSALS: Final = 3  # in a row, of a watch, after which it is begun with a list
_LONGEST_LINE: Final = 32 * 2**20  # etcd takes objects of 1.5 MiB; what exceeds this is no event


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How patient a watch is.

    Attributes:
        first, longest: seconds of the first and the longest pause after a fault.
        idle: seconds of silence after which a stream is taken for dead. Servers send a bookmark each minute.
        lifetime: seconds after which the server is asked to end a stream; up to twice as many, by chance.
        brief: a stream that lasted at least so many seconds has worked, even if it brought nothing.
        page: objects in one page of a list.
        stale_lists: how many lists that are older than what was told are refused before one is believed.
    """

    first: float = 0.2
    longest: float = 10.0
    idle: float = 120.0
    lifetime: float = 300.0
    brief: float = 1.0
    page: int = PAGE
    stale_lists: int = 6


USUAL: Final = Pace()


class _Line(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Lags(Unavailable):
    """A list is older than what was told before."""


class _Upset(Unavailable):
    """An error came inside a stream."""


_LINE: Final = msgspec.json.Decoder(_Line)
_PARTIAL: Final = msgspec.json.Decoder(Partial)


@overload
def watch(
    cluster: Cluster,
    resource: Resource,
    read: type[S],
    *,
    project: Callable[[S], T],
    namespace: str | None = None,
    everywhere: bool = False,
    labels: Selector | None = None,
    fields: Selector | None = None,
    ours: bool = True,
    pace: Pace = USUAL,
    trouble: Trouble | None = None,
) -> AsyncGenerator[Told[T], None]: ...


@overload
def watch(
    cluster: Cluster,
    resource: Resource,
    read: type[S],
    *,
    namespace: str | None = None,
    everywhere: bool = False,
    labels: Selector | None = None,
    fields: Selector | None = None,
    ours: bool = True,
    pace: Pace = USUAL,
    trouble: Trouble | None = None,
) -> AsyncGenerator[Told[S], None]: ...


def watch(
    cluster: Cluster,
    resource: Resource,
    read: type[Any],
    *,
    project: Callable[[Any], Any] | None = None,
    namespace: str | None = None,
    everywhere: bool = False,
    labels: Selector | None = None,
    fields: Selector | None = None,
    ours: bool = True,
    pace: Pace = USUAL,
    trouble: Trouble | None = None,
) -> AsyncGenerator[Told[Any], None]:
    """What is there, then :class:`Synced`, then every change, for ever.

    Kept of each object are its uid and resourceVersion. Iterate under ``contextlib.aclosing``, so that the
    connection is let go of at once when the work ends.

    Args:
        read: the struct that objects are decoded into; it has a ``metadata``.
        project: makes of each object what is yielded, where that is less than all that is read.
        namespace: where; by default the cluster's own namespace.
        everywhere: in all namespaces instead.
        labels, fields: which objects.
        ours: only objects of this installation; not for nodes, or for the pods of others.
        trouble: told of each fault while the cluster can't be seen, and None when it can again.

    Raises:
        Invalid: the selector is refused, which no waiting mends.
    """
    where = (None if everywhere else namespace or cluster.namespace) if resource.namespaced else None
    source = _Source(
        cluster=cluster,
        resource=resource,
        namespace=where,
        query=cluster.narrowed(labels, fields, ours=ours),
        decoder=msgspec.json.Decoder(read),
        project=project or _as_it_is,
        pace=pace,
    )
    return _for_ever(source, trouble or _nobody)


class _Source(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What is watched, and how."""

    cluster: Cluster
    resource: Resource
    namespace: str | None
    query: Query
    decoder: msgspec.json.Decoder[HasMetadata]
    project: Callable[[HasMetadata], T]
    pace: Pace

    def __str__(self) -> str:
        return f"{self.resource.plural} in {self.namespace or 'all namespaces'}"

    def asked(self) -> Asked:
        return Asked(
            verb="watch", plural=self.resource.plural, group=self.resource.group, namespace=self.namespace, name=None
        )


class _Sight:
    """Whether the cluster can be seen, told when that changes."""

    def __init__(self, what: str, trouble: Trouble) -> None:
        self._what = what
        self._trouble = trouble
        self._lost = False

    def lost(self, error: ElearnError) -> None:
        if not self._lost:
            _log.warning("a watch is interrupted, going on", what=self._what, error=error.detail)
        self._lost = True
        self._trouble(error)

    def back(self) -> None:
        if self._lost:
            _log.info("watching again", what=self._what)
            self._lost = False
            self._trouble(None)


async def _for_ever(source: _Source[T], trouble: Trouble) -> AsyncGenerator[Told[T], None]:
    pace = source.pace
    known = Known()
    sight = _Sight(str(source), trouble)
    backoff = Backoff(first=pace.first, longest=pace.longest, chance=source.cluster.chance)
    loop = asyncio.get_running_loop()
    listed = synced = False
    lagging = refused = 0
    while True:
        began, progress, wait = loop.time(), False, 0.0
        try:
            if not listed:
                async with aclosing(_listing(source, known)) as found:
                    async for change in found:
                        yield change
                listed, lagging, refused = True, 0, 0
                sight.back()
                if not synced:
                    synced = True
                    yield Synced()
            began = loop.time()
            async with aclosing(_changes(source, known, sight.back)) as changes:
                async for news in changes:
                    progress, refused = True, 0
                    if news is not None:
                        yield news
        except Expired as error:
            listed = False
            _log.info("a watch's history is gone, listing again", what=str(source), reason=error.detail)
        except _Upset as error:
            listed = False
            _log.warning("a watch was ended by an error, listing again", what=str(source), reason=error.detail)
        except _Lags as error:
            lagging += 1
            _log.warning("a list is older than what was seen before", what=str(source), reason=error.detail)
            if lagging >= pace.stale_lists:
                known.forget_newest()
        except Invalid:
            raise
        except ElearnError as error:
            if not isinstance(error, Unreachable | Busy):
                refused += 1  # a resourceVersion that the server has never reached is refused like this, for ever
                listed = listed and refused < _REFUSALS
            wait = error.pause if isinstance(error, Busy) else 0.0
            sight.lost(error)
        if progress or loop.time() - began >= pace.brief:
            backoff.reset()
            if listed and not wait:
                continue
        await asyncio.sleep(backoff.next(at_least=wait))


async def _listing(source: _Source[T], known: Known) -> AsyncGenerator[Change[T], None]:
    """Everything that is there, as far as it is news, and what has gone."""
    limit, token = source.pace.page, ""
    known.begin_list()
    while True:
        try:
            page = await source.cluster.page(
                source.resource, source.namespace, source.query, limit=limit, token=token, patience=0.0
            )
        except Expired:
            if not token:
                raise
            limit, token = 0, ""  # the pages' snapshot is gone: all at once, then
            known.begin_list()
            continue
        if not token and known.lags(page.version):
            raise _Lags(f"resourceVersion {page.version}, after {known.newest}")
        for item in page.items:
            for change in _told(source, known, item):
                yield change
        token = page.token
        if not token:
            break
    known.heard(page.version)
    for identity in known.end_list():
        yield Deleted(identity, None)


async def _changes(
    source: _Source[T], known: Known, opened: Callable[[], None]
) -> AsyncGenerator[Change[T] | None, None]:
    """What one watch request's events mean; None for a sign of life that changes nothing.

    Raises:
        Expired: the history from our resourceVersion on is gone.
        _Upset: the server said that something else is wrong.
    """
    async with aclosing(_stream(source, known.newest, opened)) as lines:
        async for line in lines:
            try:
                event = _LINE.decode(line)
                if event.type == "ERROR":
                    raise _meaning(msgspec.json.decode(event.object, type=Status), source.asked())
                about = _PARTIAL.decode(event.object).metadata
            except msgspec.DecodeError as error:
                raise _Upset(f"a line of the stream can't be read: {error}") from None
            if known.lags(about.resource_version):
                continue  # a replay of what was told
            known.heard(about.resource_version)
            match event.type:
                case "ADDED" | "MODIFIED":
                    for change in _told(source, known, event.object):
                        yield change
                case "DELETED":
                    identity = Identity(about.namespace, about.name, about.uid)
                    if known.gone(identity):
                        last = _read(source, event.object)
                        yield Deleted(identity, None if last is None else source.project(last))
            yield None


async def _stream(source: _Source[T], version: str, opened: Callable[[], None]) -> AsyncGenerator[bytes, None]:
    """The lines of one watch request, until it ends or is cut; the beginning of a line that was cut is dropped."""
    pace = source.pace
    seconds = max(1, round(pace.lifetime * (1 + source.cluster.chance.random())))
    async with source.cluster.watching(
        source.resource, source.namespace, source.query, version=version, seconds=seconds, idle=pace.idle
    ) as chunks:
        opened()
        rest: list[bytes] = []
        size = 0
        try:
            async for chunk in chunks:
                *lines, last = chunk.split(b"\n")
                if lines:
                    lines[0] = b"".join([*rest, lines[0]])
                    rest, size = [], 0
                    for line in lines:
                        if line:
                            yield line
                rest.append(last)
                size += len(last)
                if size > _LONGEST_LINE:
                    raise _Upset(f"a line of the stream is longer than {_LONGEST_LINE} bytes")
        except Unreachable as error:
            _log.debug("a watch was cut", what=str(source), error=error.detail)


def _told(source: _Source[T], known: Known, item: msgspec.Raw) -> list[Change[T]]:
    seen = _read(source, item)
    if seen is None:
        return []
    about = seen.metadata
    identity = Identity(about.namespace, about.name, about.uid)
    gone, news = known.told(identity, about.resource_version)
    told: list[Change[T]] = [Deleted(gone, None)] if gone else []
    if news is News.ADDED:
        told.append(Added(identity, source.project(seen)))
    elif news is News.MODIFIED:
        told.append(Modified(identity, source.project(seen)))
    return told


def _read(source: _Source[T], item: msgspec.Raw) -> HasMetadata | None:
    """The object, or None where it does not fit the struct: one odd object must not hide all others."""
    try:
        return source.decoder.decode(item)
    except msgspec.DecodeError as error:
        _log.error("an object of Kubernetes can't be read", what=str(source), object=_name(item), error=str(error))
        return None


def _name(item: msgspec.Raw) -> str:
    try:
        about = _PARTIAL.decode(item).metadata
    except msgspec.DecodeError:
        return "?"
    return f"{about.namespace}/{about.name}"


def _meaning(status: Status, asked: Asked) -> ElearnError:
    error = error_of(status, asked)
    if isinstance(error, Expired) or status.reason in ("Expired", "Gone"):
        return Expired(error.detail)
    return _Upset(error.detail)


def _as_it_is(seen: Any) -> Any:
    return seen


def _nobody(error: ElearnError | None) -> None:
    """Nobody asked to be told."""
