"""``python -m services.registry.cloud.kubernetes.agent``: reads parts of versions' archives out of the model store."""

from pathlib import Path

import msgspec

from services.registry.cloud.kubernetes.work import STORE
from services.registry.cloud.local.archive_reader import ArchiveReader
from services.registry.model import Key
from services.registry.model_store import ModelStore
from shared.agent import Handle, main


class ReadArchive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``length`` bytes of a version's tar, from ``offset`` on."""

    project: str
    model: str
    number: int
    offset: int
    length: int


def handler(root: str) -> Handle:
    """Answers questions about the store at ``root``."""
    archives = ArchiveReader(ModelStore(Path(root)))

    def handle(ask: bytes) -> object:
        asked = msgspec.json.decode(ask, type=ReadArchive)
        key = Key(asked.project, asked.model, asked.number)
        return archives.read(key, offset=asked.offset, length=asked.length)

    return handle


if __name__ == "__main__":
    main(handler(STORE))
