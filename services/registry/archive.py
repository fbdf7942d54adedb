"""The tar of a version, laid out from its manifest alone, so that any part of it can be read at any time: pure.

The same files give the same bytes, whatever their owners, times and modes: entries in the order of their
paths, folders before what is in them, modes 0644 and 0755, owner 0, time 0.
"""

import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

_RECORD: Final = tarfile.RECORDSIZE
_BLOCK: Final = tarfile.BLOCKSIZE


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A file or folder of a version; ``path`` is relative to its top.

    Attributes:
        size: bytes; -1 for a folder.
    """

    path: str
    size: int

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.size < 0


class Piece(NamedTuple):
    """A run of bytes of the archive: either given here, or to be read from a file.

    Attributes:
        path: the file, or None where ``data`` holds the bytes.
        offset, length: which part of the file.
    """

    data: bytes
    path: str | None = None
    offset: int = 0
    length: int = 0


class Layout:
    """Where everything lies in the tar of these entries.

    Args:
        entries: in any order.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.path.split("/"))
        self._headers = [_header(entry) for entry in self._entries]
        lengths = [
            len(header) + _padded(entry.size) for header, entry in zip(self._headers, self._entries, strict=True)
        ]
        self._starts = [0, *accumulate(lengths)]
        end = self._starts[-1] + 2 * _BLOCK
        self.size = end + -end % _RECORD

    def pieces(self, offset: int, length: int) -> list[Piece]:
        """What makes up at most ``length`` bytes from ``offset`` on, in order."""
        pieces: list[Piece] = []
        position, end = offset, min(offset + length, self.size)
        while position < end:
            index = bisect_right(self._starts, position) - 1
            if index >= len(self._entries):
                pieces.append(Piece(bytes(end - position)))
                break
            piece = self._piece(index, position - self._starts[index], end - position)
            pieces.append(piece)
            position += piece.length if piece.path is not None else len(piece.data)
        return pieces

    def _piece(self, index: int, within: int, most: int) -> Piece:
        header, entry = self._headers[index], self._entries[index]
        if within < len(header):
            return Piece(header[within : within + most])
        within -= len(header)
        if within < entry.size:
            return Piece(b"", entry.path, within, min(most, entry.size - within))
        return Piece(bytes(min(most, _padded(entry.size) - within)))


def _header(entry: Entry) -> bytes:
    info = tarfile.TarInfo(entry.path)
    if entry.is_folder:
        info.type = tarfile.DIRTYPE
        info.mode = 0o755
    else:
        info.size = entry.size
        info.mode = 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def _padded(size: int) -> int:
    return max(0, size) + -max(0, size) % _BLOCK
