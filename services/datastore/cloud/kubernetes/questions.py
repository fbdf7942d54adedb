"""What an agent is asked of a datastore's files. Pure."""

from typing import Final, TypeVar

import msgspec

from shared.contracts.datastore import FileEntry

T = TypeVar("T")

MOUNTED_AT: Final = "/data"


Entries = list[FileEntry]


class TryIt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="probe"):
    read_only: bool


class ListFolder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="list"):
    path: str
    after: str | None
    limit: int


class Stat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="stat"):
    path: str


class Read(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="read"):
    path: str
    offset: int
    length: int


class Write(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="write"):
    path: str
    upload: str
    offset: int
    data: bytes
    end: bool


class Delete(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="delete"):
    path: str


class Sweep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="sweep"):
    older_than: float


Question = TryIt | ListFolder | Stat | Read | Write | Delete | Sweep
