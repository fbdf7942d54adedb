"""Open watches of an emulated API server: what they are sent, how they end, and how they are cut."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec
from aiohttp import web

from shared.kube.resources import Resource
from tests.support.kube_errors import ApiError
from tests.support.kube_faults import abort
from tests.support.kube_fields import Document
from tests.support.kube_objects import Entry, KubeObjects
from tests.support.kube_selectors import matches

Action = Literal["cut", "end", "gone", "upset", "bookmark"]


class Watch:
    """One open watch.

    Attributes:
        changed: there may be news, or something to do.
        cut_line: it is cut in the middle of its next line.
        position: up to which revision it has been sent everything.
    """

    def __init__(self, request: web.Request, resource: Resource, namespace: str | None) -> None:
        self.resource = resource
        self.changed = asyncio.Event()
        self.actions: deque[Action] = deque()
        self.cut_line = False
        self.position = 0
        self._namespace = namespace
        self._labels = request.query.get("labelSelector", "")
        self._fields = request.query.get("fieldSelector", "")

    def act(self, action: Action) -> None:
        self.actions.append(action)
        self.changed.set()

    def wants(self, document: Document) -> bool:
        return matches(document, self._labels, self._fields)

    def news(self, history: list[Entry], position: int) -> list[bytes]:
        """Lines of what happened after a revision."""
        lines = []
        entries: list[Entry] = []
        for entry in reversed(history):
            if entry.revision <= position:
                break
            entries.append(entry)
        for entry in reversed(entries):
            before = entry.before if entry.before and self.wants(entry.before) else None
            after = entry.after if entry.after and self.wants(entry.after) else None
            told = after or before
            if told is None or (self._namespace is not None and told["metadata"].get("namespace") != self._namespace):
                continue
            kind = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
            if kind == "DELETED" and entry.after is not None:
                version = str(entry.revision)
                told = {**told, "metadata": {**told["metadata"], "resourceVersion": version}}
            lines.append(_line(kind, told))
        return lines


class Watches:
    """All open watches.

    Args:
        objects: what the server keeps now: a test may put another state in its place.
    """

    def __init__(self, objects: Callable[[], KubeObjects]) -> None:
        self._objects = objects
        self._open: set[Watch] = set()
        self._opened = asyncio.Condition()

    def act(self, action: Action) -> None:
        """Every open watch does this as soon as it has been sent everything."""
        for watch in self._open:
            watch.act(action)

    def wake(self) -> None:
        """There may be news."""
        for watch in self._open:
            watch.changed.set()

    async def cut(self, *, mid_line: bool) -> None:
        """Cut every open watch, now, or in the middle of its next line."""
        if mid_line:
            for watch in self._open:
                watch.cut_line = True
        else:
            self.act("cut")
            await self.counted(0)

    async def counted(self, count: int, *, plural: str = "", timeout: float = 5.0) -> None:
        """Wait until exactly that many watches are open (of one kind)."""

        def open_now() -> bool:
            return sum(not plural or watch.resource.plural == plural for watch in self._open) == count

        async with asyncio.timeout(timeout), self._opened:
            await self._opened.wait_for(open_now)

    async def settled(self, *, timeout: float) -> None:
        """Wait until every open watch has been sent everything."""
        async with asyncio.timeout(timeout):
            while any(watch.position < self._objects().revision for watch in self._open):
                await asyncio.sleep(0)

    async def serve(
        self, request: web.Request, resource: Resource, namespace: str | None, *, gone_in_stream: bool
    ) -> web.StreamResponse:
        """Answer a watch until it ends.

        Raises:
            ApiError: it can't begin from where it asks to.
        """
        query, objects = request.query, self._objects()
        asked = query.get("resourceVersion", "")
        position = int(asked) if asked not in ("", "0") else objects.revision
        gone = ApiError(410, "Expired", f"too old resource version: {position} ({objects.oldest})")
        if position < objects.oldest and not gone_in_stream:
            raise gone
        if position > objects.revision:
            raise ApiError(
                504,
                "Timeout",
                f"Timeout: Too large resource version: {position}, current: {objects.revision}",
                causes=[{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                retryAfterSeconds=1,
            )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if position < objects.oldest:
            await response.write(_line("ERROR", gone.status))
            return response
        watch = Watch(request, resource, namespace)
        if asked in ("", "0"):
            for document in objects.all(resource, namespace):
                if watch.wants(document):
                    await response.write(_line("ADDED", document))
        self._open.add(watch)
        await self._tell()
        try:
            async with asyncio.timeout(float(query.get("timeoutSeconds", "1800"))):
                return await self._follow(request, response, watch, objects, position, gone)
        except TimeoutError:
            return response
        except ConnectionError:
            return response
        finally:
            self._open.discard(watch)
            await self._tell()

    async def _follow(
        self,
        request: web.Request,
        response: web.StreamResponse,
        watch: Watch,
        objects: KubeObjects,
        position: int,
        gone: ApiError,
    ) -> web.StreamResponse:
        while True:
            if position < objects.oldest - 1:  # it fell behind, and the history that it needed is gone
                await response.write(_line("ERROR", gone.status))
                return response
            news = watch.news(self._objects().history.get(watch.resource, []), position)
            position = max(position, objects.revision)
            watch.changed.clear()
            for line in news:
                if watch.cut_line:
                    await response.write(line[: len(line) // 2])
                    return abort(request)
                await response.write(line)
            watch.position = position
            while watch.actions:
                action = watch.actions.popleft()
                if action == "cut":
                    return abort(request)
                if action == "end":
                    return response
                if action == "gone":
                    await response.write(_line("ERROR", ApiError(410, "Expired", "too old").status))
                    return response
                if action == "upset":
                    await response.write(_line("ERROR", ApiError(500, "InternalError", "upset").status))
                    return response
                if action == "bookmark" and "allowWatchBookmarks" in request.query:
                    await response.write(_bookmark(watch.resource, position))
            await watch.changed.wait()

    async def _tell(self) -> None:
        async with self._opened:
            self._opened.notify_all()


def _bookmark(resource: Resource, position: int) -> bytes:
    metadata = {"resourceVersion": str(position), "creationTimestamp": None}
    return _line("BOOKMARK", {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata})


def _line(kind: str, document: Document) -> bytes:
    return msgspec.json.encode({"type": kind, "object": document}) + b"\n"
