"""Logs of containers as a kubelet serves them: records in a file that only grows until it is rotated.

A record is a line, or 16 KiB of one, with its stamp. Of records that make up one line only the first is stamped when it
is asked for with stamps; a question for what came since a second leaves out older records one by one, so that an answer
may begin in the middle of a line.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from aiohttp import web

RECORD = 16 * 1024
SECOND = 10**9

Key = tuple[str, str, str]
"""Namespace, pod, container."""


class Record(NamedTuple):
    stamp: int
    data: bytes


class LogFile:
    """The log of one container; ``first`` is the first record of the present file."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.first = 0
        self.ended = False


class KubeletLogs:
    """All logs.

    Attributes:
        clock: nanoseconds since 1970; it never stands still by itself.
        cut_after: after how many bytes the next answers are cut, and whether that can be told from a good end.
        says: what the kubelet says of its own at the end of the next answers, in place of following.
        following: answers under way that follow.
    """

    def __init__(self) -> None:
        self.clock: Callable[[], int] = time.time_ns
        self.cut_after: list[tuple[int, bool]] = []
        self.says: list[bytes] = []
        self.following = 0
        self._files: dict[Key, LogFile] = {}
        self._bells: set[asyncio.Event] = set()

    async def write(self, key: Key, data: bytes, *, stamps: list[int] | None = None, end: bool = False) -> None:
        """A container writes bytes.

        Args:
            stamps: of the records that become of them; the last one stands for all that follow.
            end: and it ends; followers are let go.
        """
        file = self._files.setdefault(key, LogFile())
        given = list(stamps or ())
        for piece in pieces(data):
            stamp = (given.pop(0) if len(given) > 1 else given[0]) if given else self.clock()
            file.records.append(Record(stamp, piece))
        file.ended = file.ended or end
        self._ring()
        await asyncio.sleep(0)

    def rotate(self, key: Key) -> None:
        """Begin a new file; who follows goes on to it, who asks anew sees nothing else."""
        file = self._files[key]
        file.first = len(file.records)

    def end(self, namespace: str, pod: str) -> None:
        """All of a pod's containers end."""
        for key, file in self._files.items():
            if key[:2] == (namespace, pod):
                file.ended = True
        self._ring()

    async def followed(self, count: int, *, timeout: float = 5.0) -> None:
        """Wait until exactly so many answers are following."""
        async with asyncio.timeout(timeout):
            await self._until(lambda: self.following == count)

    def get(self, key: Key) -> LogFile | None:
        return self._files.get(key)

    async def answer(self, request: web.Request, file: LogFile) -> web.StreamResponse:
        """Serve a log."""
        query = request.query
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        cut, abort = self.cut_after.pop(0) if self.cut_after else (None, False)
        room = int(query.get("limitBytes", "0")) or None
        since = _since(query.get("sinceTime", ""))
        stamped, follow = query.get("timestamps") == "true", query.get("follow") == "true"
        at = _from_line(file, int(query["tailLines"])) if "tailLines" in query else file.first
        begins, sent = True, 0
        said = self.says.pop(0) if self.says else b""
        try:
            if follow:
                self.following += 1
                self._ring()
            while True:
                data = served(file.records[at:], since, stamped=stamped, begins=begins)
                at = len(file.records)
                begins = at == 0 or file.records[-1].data.endswith(b"\n")
                data = data if room is None else data[: room - sent]
                if cut is not None and sent + len(data) >= cut:
                    await response.write(data[: cut - sent])
                    if abort and request.transport is not None:
                        await asyncio.sleep(0.01)
                        request.transport.abort()
                    return response
                sent += len(data)
                if data:
                    await response.write(data)
                if said:
                    await response.write(said)
                if said or not follow or file.ended or room == sent:
                    return response
                await self._until(partial(_has_more, file, at))
        finally:
            if follow:
                self.following -= 1
                self._ring()

    def _ring(self) -> None:
        for bell in self._bells:
            bell.set()

    async def _until(self, true: Callable[[], bool]) -> None:
        bell = asyncio.Event()
        self._bells.add(bell)
        try:
            while not true():
                bell.clear()
                await bell.wait()
        finally:
            self._bells.discard(bell)


def _has_more(file: LogFile, at: int) -> bool:
    return len(file.records) > at or file.ended


def served(records: Sequence[Record], since: int, *, stamped: bool, begins: bool = True) -> bytes:
    """Records as they are sent; ``begins``: the first of them begins a line."""
    parts = []
    for record in records:
        if record.stamp >= since:
            parts.append((_text(record.stamp) if stamped and begins else b"") + record.data)
        begins = record.data.endswith(b"\n")
    return b"".join(parts)


def pieces(data: bytes) -> list[bytes]:
    """Bytes as the records that become of them; what ends without a newline is one of its own."""
    parts = data.split(b"\n")  # `splitlines` would take a carriage return for an end too
    lines = [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])
    return [line[at : at + RECORD] for line in lines for at in range(0, len(line), RECORD)]


def _text(stamp: int) -> bytes:
    second = datetime.fromtimestamp(stamp // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{second}.{stamp % SECOND:09}Z ".encode()


def _since(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND if text else 0


def _from_line(file: LogFile, count: int) -> int:
    """Where the last so many lines begin."""
    begins = [
        at
        for at in range(file.first, len(file.records))
        if at == file.first or file.records[at - 1].data.endswith(b"\n")
    ]
    return begins[-count] if 0 < count <= len(begins) else file.first if count else len(file.records)
