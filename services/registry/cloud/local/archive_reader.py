"""Reads parts of a version's tar out of the model store. Everything here blocks."""

import os
import threading
from collections import OrderedDict
from typing import Final

from services.registry.archive import Layout
from services.registry.model import Key
from services.registry.model_store import ModelStore
from shared.beneath import NotAFileError, OutsideError, Tree
from shared.contracts.common import Chunk
from shared.errors import Internal

_LAYOUTS_KEPT: Final = 8


class ArchiveReader:
    """Keeps the layouts of the versions that are being downloaded, so that each part costs one read."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._layouts: OrderedDict[Key, Layout] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, key: Key, *, offset: int, length: int) -> Chunk:
        """At most ``length`` bytes from ``offset`` on.

        Raises:
            Internal: the store no longer holds what was saved.
        """
        layout = self._layout(key)
        tree = Tree(str(self._store.version(key)))
        parts = []
        for piece in layout.pieces(offset, length):
            if piece.path is None:
                parts.append(piece.data)
            else:
                parts.append(_read(tree, key, piece.path, piece.offset, piece.length))
        data = b"".join(parts)
        return Chunk(data=data, offset=offset, total=layout.size, end=offset + len(data) >= layout.size)

    def forget(self, key: Key) -> None:
        """Drop what is known of a version that is removed."""
        with self._lock:
            self._layouts.pop(key, None)

    def _layout(self, key: Key) -> Layout:
        with self._lock:
            known = self._layouts.get(key)
            if known is not None:
                self._layouts.move_to_end(key)
                return known
        manifest = self._store.saved(key)
        if manifest is None:
            raise Internal(f"the model store does not hold version {key} (any more)")
        layout = Layout(manifest.entries)
        with self._lock:
            self._layouts[key] = layout
            while len(self._layouts) > _LAYOUTS_KEPT:
                self._layouts.popitem(last=False)
        return layout


def _read(tree: Tree, key: Key, path: str, offset: int, length: int) -> bytes:
    try:
        descriptor = tree.open_file(path)
        try:
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
    except (OSError, OutsideError, NotAFileError) as error:
        raise Internal(f"{path} of version {key} can't be read from the model store: {error}") from error
    if len(data) != length:
        raise Internal(f"{path} of version {key} was changed in the model store: it is too short")
    return data
