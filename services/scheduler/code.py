"""Archives of code: uploads in parts, checked when the last one has come."""

import asyncio
import hashlib
import re
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
import structlog

from services.scheduler.code_store import CodeStore
from shared.archive import CODE, verify
from shared.clock import now
from shared.contracts.common import CHUNK_BYTES, Chunk, Done
from shared.contracts.training import CodeArchive, CodeChunk, CodeRequest, ReadCode
from shared.errors import Conflict, ElearnError, Invalid, TooLarge, Unavailable
from shared.postgres import Database, Transaction
from shared.unpacking import storing

_log = structlog.get_logger(__name__)

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_UPLOAD: Final = re.compile(r"[-A-Za-z0-9_.]{1,100}")
_UPLOAD_LIFETIME: Final = timedelta(hours=1)
_SWEEP_EVERY: Final = 600.0


class CodeVerbs:
    """Answers ``put_code``, ``stat_code`` and ``read_code``.

    Args:
        limit: most bytes of an archive.
        retention: how long an archive that no training refers to is kept.
    """

    def __init__(self, database: Database, store: CodeStore, limit: int, retention: timedelta) -> None:
        self._database = database
        self._store = store
        self._limits = msgspec.structs.replace(CODE, compressed=limit)
        self._retention = retention

    async def put(self, part: CodeChunk) -> Done:
        """Take a part; with the last one, check the whole and keep it.

        Raises:
            Invalid: the digest is not one, or not that of the bytes; a member of the archive is unsafe.
            Malformed: it is no archive.
            TooLarge: it is over the limit.
            Conflict: parts come out of order.
        """
        _check_digest(part.digest)
        if not _UPLOAD.fullmatch(part.upload):
            raise Invalid.field("upload", "must be 1 to 100 letters, digits, dots, dashes and underscores")
        if len(part.data) > CHUNK_BYTES:
            raise TooLarge(f"a part may have {CHUNK_BYTES:,} bytes")
        key = (part.project, part.digest, part.upload)
        async with self._database.transaction() as t:
            if await self._store.exists(t, part.project, part.digest):
                await self._store.abandon(t, *key)
                return Done()
            too_large = part.offset + len(part.data) > self._limits.compressed
            if too_large:
                await self._store.abandon(t, *key)
            elif part.offset == 0:
                await self._store.begin(t, *key, now())
                await self._store.add(t, *key, 0, part.data, now())
            else:
                await self._go_on(t, part)
        if too_large:
            raise TooLarge(
                f"the archive of code is over {self._limits.compressed:,} bytes; "
                f"put data into a datastore, and name what is not needed in .elearnignore"
            )
        if part.end:
            await self._finish(part)
        return Done()

    async def _go_on(self, t: Transaction, part: CodeChunk) -> None:
        key = (part.project, part.digest, part.upload)
        size = await self._store.uploaded(t, *key)
        if size is None:
            raise Conflict("this upload has not begun, or was given up; begin it again at offset 0")
        if part.offset < size:
            return  # sent again: the first answer was lost
        if part.offset > size:
            raise Conflict(f"this part begins at {part.offset}, but {size} bytes have come; go on there")
        await self._store.add(t, *key, part.offset, part.data, now())

    async def _finish(self, part: CodeChunk) -> None:
        key = (part.project, part.digest, part.upload)
        with storing(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as file:
            digest = hashlib.sha256()
            size = 0
            async for data in self._store.upload_parts(*key):
                digest.update(data)
                size += len(data)
                await asyncio.to_thread(file.write, data)
            try:
                if f"sha256:{digest.hexdigest()}" != part.digest:
                    raise Invalid.field("digest", f"the {size:,} bytes that came hash to sha256:{digest.hexdigest()}")
                await asyncio.to_thread(self._verify, file)
            except ElearnError:
                async with self._database.transaction() as t:
                    await self._store.abandon(t, *key)
                raise
        async with self._database.transaction() as t:
            await self._store.keep(t, *key, size, now())

    def _verify(self, file: BinaryIO) -> None:
        file.seek(0)
        verify(file, self._limits)

    async def stat(self, request: CodeRequest) -> CodeArchive:
        """A stored archive.

        Raises:
            NoSuchCode: it was never uploaded whole.
        """
        _check_digest(request.digest)
        async with self._database.transaction() as t:
            return await self._store.stat(t, request.project, request.digest)

    async def read(self, request: ReadCode) -> Chunk:
        """A part of a stored archive.

        Raises:
            NoSuchCode: there is none.
        """
        _check_digest(request.digest)
        async with self._database.transaction() as t:
            return await self._store.read(t, request.project, request.digest, max(0, request.offset))

    async def sweep(self) -> None:
        """Delete, now and then and for ever, what nobody needs any more."""
        while True:
            try:
                async with self._database.transaction() as t:
                    moment = now()
                    await self._store.sweep(t, moment - _UPLOAD_LIFETIME, moment - self._retention)
            except Unavailable as error:
                _log.info("sweeping code later", error=error.detail)
            await asyncio.sleep(_SWEEP_EVERY)


def _check_digest(digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise Invalid.field("digest", f"{digest!r} is not sha256: and 64 hex digits")
