"""Datastores: create, look, probe, and move files in and out."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from elearn.client import files
from elearn.client.connection import checked_name
from elearn.client.errors import TimedOut
from elearn.client.transport import Transport, label_query
from elearn.client.waiting import pauses
from shared.codec import convert
from shared.contracts.common import Done, Page, relative_path_problem
from shared.contracts.datastore import (
    Arrival,
    Datastore,
    DatastoreSpec,
    FileEntry,
    Probe,
    datastore_errors,
)
from shared.errors import Conflict, Invalid

Moved = Callable[[str, int], None]
"""Called after each file: its path in the datastore, and its bytes."""


class Datastores:
    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = f"{base}/datastores"

    def create(self, spec: DatastoreSpec | Mapping[str, object]) -> Datastore:
        """Name a directory; it can be mounted once it is ready: see :meth:`wait`.

        Raises:
            Invalid: a field can't be accepted.
            Conflict: there is one of that name.
        """
        if not isinstance(spec, DatastoreSpec):
            spec = convert(DatastoreSpec, dict(spec))
        if errors := datastore_errors(spec):
            raise Invalid.of(errors)
        return self._transport.call("POST", self._base, Datastore, body=spec)

    def list(self, *, state: str | None = None, labels: Mapping[str, str] | None = None) -> Iterator[Datastore]:
        """Every datastore, or those in a state that carry all of these labels."""
        query = {"state": state, "label": label_query(labels)}
        return self._transport.pages(self._base, Page[Datastore], query=query)

    def get(self, name: str) -> Datastore:
        return self._transport.call("GET", self._at(name), Datastore)

    def wait(self, name: str, *, timeout: float | None = None) -> Datastore:
        """Wait until it is ready.

        Args:
            timeout: seconds.

        Raises:
            Conflict: it failed; the message says why.
            TimedOut: it was not ready in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for pause in pauses(deadline):
            found = self.get(name)
            if found.state == "ready":
                return found
            if found.state in ("failed", "deleting"):
                raise Conflict(f"datastore {name} is {found.state}: {found.reason or 'no reason given'}")
            if pause is None:
                raise TimedOut(
                    f"datastore {name} is still {found.state} after {timeout:g} s: {found.reason or 'no reason'}"
                )
            time.sleep(pause)
        raise AssertionError("unreachable")

    def delete(self, name: str) -> None:
        """Forget a datastore that no training mounts; its files stay."""
        self._transport.call("DELETE", self._at(name), Done)

    def probe(self, name: str) -> Probe:
        """Try now whether it can be read and written."""
        return self._transport.call("POST", f"{self._at(name)}/probe", Probe, body={})

    def arrived(self, name: str, path: str = "", version: str = "") -> None:
        """Say that data has arrived, as a data pipeline does: publishes ``elearn.v1.data.arrived``."""
        arrival = Arrival(path=path, version=version)
        self._transport.call("POST", f"{self._at(name)}/arrivals", Done, body=arrival)

    # -- files -----------------------------------------------------------------------------------------

    def stat(self, name: str, path: str = "") -> FileEntry:
        """What lies at a path."""
        return self._transport.call("GET", self._file(name, path), FileEntry, query={"stat": True})

    def ls(self, name: str, path: str = "") -> Iterator[FileEntry]:
        """The entries of a folder, by name; a file is its own only entry."""
        found = self.stat(name, path)
        if found.kind != "directory":
            yield found
            return
        yield from self._transport.pages(self._file(name, path), Page[FileEntry])

    def walk(self, name: str, path: str = "") -> Iterator[FileEntry]:
        """Everything below a folder, folders before what is in them."""
        for entry in self.ls(name, path):
            yield entry
            if entry.kind == "directory":
                yield from self.walk(name, entry.path)

    def read(self, name: str, path: str) -> bytes:
        """A file's bytes, all of them in memory.

        Raises:
            Invalid: it is a folder.
        """
        with files.opened(self._transport, self._file(name, path), path) as response:
            return response.read()

    def write(self, name: str, path: str, data: bytes) -> FileEntry:
        """Put a file; it appears whole or not at all."""
        return files.put(self._transport, self._file(name, path, top=False), lambda: (data,), len(data))

    def upload(self, name: str, source: str | Path, path: str = "", *, moved: Moved | None = None) -> int:
        """Put a file, or every file in a folder. Links to files are put as what they point to; a folder
        appears with the first file in it, so an empty one does not.

        Args:
            path: of the file, or of the folder that the contents go into. An empty one, or one that ends
                in ``/``, is a folder that a file is put into under its own name.
            moved: called after each file.

        Returns:
            How many files were put.

        Raises:
            Invalid: there is nothing to put, or something that is neither a file nor a folder.
        """
        return files.upload(
            self._transport, lambda at: self._file(name, at, top=False), Path(source), path, moved or _ignore
        )

    def download(self, name: str, path: str, to: str | Path, *, moved: Moved | None = None) -> int:
        """Get a file, or everything in a folder. Each file appears whole; those that are there are replaced.

        Args:
            to: what the file or folder becomes; a file goes into a folder that is there under its own name.
            moved: called after each file.

        Returns:
            How many files were got.

        Raises:
            Invalid: it can't be written here, or a link in the datastore leads outside.
            StorageFull: no space is left here.
        """
        found = self.stat(name, path)
        entries = self.walk(name, path) if found.kind == "directory" else iter((found,))
        return files.download(
            self._transport, lambda at: self._file(name, at), found, entries, Path(to), moved or _ignore
        )

    def remove(self, name: str, path: str) -> None:
        """Delete a file, or a folder and all that is in it."""
        self._transport.call("DELETE", self._file(name, path, top=False), Done)

    def _at(self, name: str) -> str:
        return f"{self._base}/{checked_name(name)}"

    def _file(self, name: str, path: str, *, top: bool = True) -> str:
        path = path.strip("/")
        problem = relative_path_problem(path) if path or not top else None
        if problem is not None:
            raise Invalid.field("path", problem)
        # Dots would be taken out on the way, by this side or the other.
        parts = [quote(part, safe="") for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise Invalid.field("path", f"{path!r} holds '..': name the file directly")
        return f"{self._at(name)}/files/{'/'.join(parts)}"


def _ignore(path: str, size: int) -> None:
    del path, size
