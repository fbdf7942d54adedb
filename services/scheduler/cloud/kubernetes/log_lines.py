"""From what the API tells of a container's log, each line stamped, to bytes that were not taken before. Pure.

The API can be asked for the lines from a second on, and for nothing finer. So a mark says how far into the lines from
such a second on a log was taken: the kubelet only appends to its file, hence the same question is answered by the same
bytes first. Where it begins with another line than it did, the file was rotated, and only what is younger than
everything taken before is new. Stamps need not ascend, as a container's two outputs are stamped apart from each other;
many lines may bear the same; a long line comes stamped once, and may be taken in pieces. What is not stamped is no line
of the container: a word of the kubelet itself, or the rest of a line that began before the second that was asked for.
"""

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

_STAMP: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ")
_LONGEST_STAMP: Final = len("2026-11-24T08:00:00.123456789+00:00 ")
_SECOND: Final = 10**9
_SKEW: Final = _SECOND // 20
"""So much later, in nanoseconds, a line may still appear that is stamped earlier than others."""


class Mark(NamedTuple):
    """How far a log was taken.

    Attributes:
        second: the lines from here on have to be asked for, in seconds since 1970.
        first: the stamp of the first of those, in nanoseconds.
        taken: how many bytes of those were taken.
        latest: the greatest stamp of all that was taken.
    """

    second: int
    first: int
    taken: int
    latest: int

    @property
    def since(self) -> str:
        """The second as the API takes it."""
        return datetime.fromtimestamp(self.second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def text(self) -> str:
        """The mark as it is stored."""
        return " ".join(map(str, self))

    @classmethod
    def read(cls, text: str) -> Self | None:
        """A stored mark; None where nothing was taken yet."""
        return cls(*map(int, text.split())) if text else None


class _Second:
    """What came of the lines of one second."""

    __slots__ = ("first", "order", "size")

    def __init__(self, order: int, first: int) -> None:
        self.order = order
        self.first = first
        self.size = 0


class LogLines:
    """One answer of the API, read as it comes.

    Args:
        mark: how far the log was taken before; the answer is that to the question for ``mark.since``.

    Attributes:
        gap: the file was rotated: something may have been lost before what is new.
    """

    def __init__(self, mark: Mark | None) -> None:
        self.gap = False
        self._mark = mark
        self._skip = 0
        self._seeking = False
        self._begun = False
        self._latest = mark.latest if mark is not None else 0
        self._rest = b""
        self._line_begins = True
        self._stamp: int | None = None
        self._seconds: dict[int, _Second] = {}
        self._order = 0
        self._known: tuple[bytes, bytes, int] = (b"", b"", 0)

    def feed(self, chunk: bytes) -> bytes:
        """What is new in the next bytes of the answer."""
        data, at, new = self._rest + chunk, 0, bytearray()
        while at < len(data):
            if self._line_begins:
                found = _STAMP.match(data, at)
                if found is None and data.find(b"\n", at) < 0 and len(data) - at < _LONGEST_STAMP:
                    break  # the stamp may not be all there
                self._begin(found)
                at = at if found is None else found.end()
            end = data.find(b"\n", at) + 1
            self._line_begins = end > 0
            stop = end or len(data)
            if self._stamp is not None:
                new += self._take(data[at:stop], self._stamp)
            at = stop
        self._rest = data[at:]
        return bytes(new)

    def reached(self) -> Mark | None:
        """How far the log is taken with all that :meth:`feed` has answered."""
        if self._skip or self._seeking:
            return self._mark  # this answer has not come as far as those before
        second = (self._latest - _SKEW) // _SECOND
        if self._mark is not None:
            second = max(second, self._mark.second)
        for old in [each for each in self._seconds if each < second]:
            del self._seconds[old]
        if not self._seconds:
            return self._mark
        first = min(self._seconds.values(), key=lambda each: each.order).first
        return Mark(second, first, sum(each.size for each in self._seconds.values()), self._latest)

    def _begin(self, found: re.Match[bytes] | None) -> None:
        if found is None:
            self._stamp = None
            return
        stamp = self._stamp = self._nanoseconds(found)
        if not self._begun:
            self._begun = True
            if self._mark is not None and stamp == self._mark.first:
                self._skip = self._mark.taken
            elif self._mark is not None:
                self._seeking = self.gap = True

    def _take(self, piece: bytes, stamp: int) -> bytes:
        second = self._seconds.get(stamp // _SECOND)
        if second is None:
            self._order += 1
            second = self._seconds[stamp // _SECOND] = _Second(self._order, stamp)
        second.size += len(piece)
        if self._skip:
            known = min(self._skip, len(piece))
            self._skip -= known
            piece = piece[known:]
        elif self._seeking and stamp <= self._latest:
            return b""
        if piece:
            self._seeking = False
            self._latest = max(self._latest, stamp)
        return piece

    def _nanoseconds(self, found: re.Match[bytes]) -> int:
        moment, fraction, zone = found[1], found[2] or b"", found[3]
        if self._known[:2] != (moment, zone):
            try:
                told = datetime.fromisoformat((moment + zone).decode())
            except ValueError:  # the 30th of February: no clock says so, and no line of ours is lost for it
                return self._latest
            self._known = (moment, zone, int(told.timestamp()))
        return self._known[2] * _SECOND + int(fraction.ljust(9, b"0") or 0)
