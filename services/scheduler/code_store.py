"""All SQL of code archives: they arrive in parts, are checked whole, and are kept once per project and digest."""

import secrets
from collections.abc import AsyncGenerator
from datetime import datetime

from services.scheduler.errors import NoSuchCode
from shared.contracts.common import CHUNK_BYTES, Chunk
from shared.contracts.training import CodeArchive
from shared.postgres import Database, Transaction


class CodeStore:
    """Archives of code in PostgreSQL. Methods with ``t`` work in the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def stat(self, t: Transaction, project: str, digest: str) -> CodeArchive:
        """A stored archive.

        Raises:
            NoSuchCode: it was never uploaded whole.
        """
        row = await t.fetchrow(
            "SELECT size, created_at FROM code_archive WHERE project = $1 AND digest = $2", project, digest
        )
        if row is None:
            raise NoSuchCode(project, digest)
        return CodeArchive(project=project, digest=digest, size=row["size"], created_at=row["created_at"])

    async def use(self, t: Transaction, project: str, digest: str, now: datetime) -> bool:
        """Note that an archive is needed; False if there is none."""
        status = await t.execute(
            "UPDATE code_archive SET used_at = $3 WHERE project = $1 AND digest = $2", project, digest, now
        )
        return status == "UPDATE 1"

    async def exists(self, t: Transaction, project: str, digest: str) -> bool:
        """Whether an archive is stored whole."""
        found = await t.fetchval("SELECT true FROM code_archive WHERE project = $1 AND digest = $2", project, digest)
        return bool(found)

    async def uploaded(self, t: Transaction, project: str, digest: str, upload: str) -> int | None:
        """How many bytes of an upload have come; None where it has not begun. The upload is locked."""
        size: int | None = await t.fetchval(
            "SELECT size FROM code_upload WHERE project = $1 AND digest = $2 AND upload = $3 FOR UPDATE",
            project,
            digest,
            upload,
        )
        return size

    async def begin(self, t: Transaction, project: str, digest: str, upload: str, now: datetime) -> None:
        """Begin an upload, or begin it again from nothing."""
        await self.abandon(t, project, digest, upload)
        await t.execute(
            "INSERT INTO code_upload (project, digest, upload, size, changed_at) VALUES ($1, $2, $3, 0, $4)",
            project,
            digest,
            upload,
            now,
        )

    async def add(
        self, t: Transaction, project: str, digest: str, upload: str, start: int, data: bytes, now: datetime
    ) -> None:
        """Add the part that follows."""
        await t.execute(
            "INSERT INTO code_upload_part (project, digest, upload, start, data) VALUES ($1, $2, $3, $4, $5)",
            project,
            digest,
            upload,
            start,
            data,
        )
        await t.execute(
            "UPDATE code_upload SET size = $4, changed_at = $5 WHERE project = $1 AND digest = $2 AND upload = $3",
            project,
            digest,
            upload,
            start + len(data),
            now,
        )

    async def abandon(self, t: Transaction, project: str, digest: str, upload: str) -> None:
        """Forget an upload."""
        await t.execute(
            "DELETE FROM code_upload WHERE project = $1 AND digest = $2 AND upload = $3",
            project,
            digest,
            upload,
        )

    async def keep(self, t: Transaction, project: str, digest: str, upload: str, size: int, now: datetime) -> None:
        """Make an upload that was checked the stored archive, unless another was quicker."""
        added = await t.execute(
            "INSERT INTO code_archive (project, digest, size, created_at, used_at)"
            " VALUES ($1, $2, $3, $4, $4) ON CONFLICT DO NOTHING",
            project,
            digest,
            size,
            now,
        )
        if added == "INSERT 0 1":
            await t.execute(
                "INSERT INTO code_part (project, digest, start, data)"
                " SELECT project, digest, start, data FROM code_upload_part"
                " WHERE project = $1 AND digest = $2 AND upload = $3",
                project,
                digest,
                upload,
            )
        await self.abandon(t, project, digest, upload)

    async def upload_parts(self, project: str, digest: str, upload: str) -> AsyncGenerator[bytes, None]:
        """The bytes of an upload, a part at a time, each in a transaction of its own."""
        offset = 0
        while True:
            async with self._database.transaction() as t:
                data = await t.fetchval(
                    "SELECT data FROM code_upload_part"
                    " WHERE project = $1 AND digest = $2 AND upload = $3 AND start = $4",
                    project,
                    digest,
                    upload,
                    offset,
                )
            if not data:
                return
            yield bytes(data)
            offset += len(data)

    async def parts(self, project: str, digest: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a stored archive, a part at a time, each in a transaction of its own.

        Raises:
            NoSuchCode: there is none.
        """
        offset = 0
        while True:
            async with self._database.transaction() as t:
                if offset == 0:
                    await self.stat(t, project, digest)
                data = await t.fetchval(
                    "SELECT data FROM code_part WHERE project = $1 AND digest = $2 AND start = $3",
                    project,
                    digest,
                    offset,
                )
            if not data:
                return
            yield bytes(data)
            offset += len(data)

    async def read(self, t: Transaction, project: str, digest: str, offset: int) -> Chunk:
        """A part of a stored archive, from ``offset`` on.

        Raises:
            NoSuchCode: there is none.
        """
        archive = await self.stat(t, project, digest)
        row = await t.fetchrow(
            "SELECT start, data FROM code_part WHERE project = $1 AND digest = $2 AND start <= $3"
            " ORDER BY start DESC LIMIT 1",
            project,
            digest,
            offset,
        )
        data = bytes(row["data"])[offset - row["start"] :][:CHUNK_BYTES] if row else b""
        return Chunk(data=data, offset=offset, total=archive.size, end=offset + len(data) >= archive.size)

    async def size(self, project: str, digest: str) -> int:
        """Bytes of a stored archive.

        Raises:
            NoSuchCode: there is none.
        """
        async with self._database.transaction() as t:
            return (await self.stat(t, project, digest)).size

    async def is_held(self, project: str, digest: str, training: str, attempt: int) -> bool:
        """Whether this attempt of a training is its current one, holds compute, and has this code."""
        async with self._database.transaction() as t:
            held = await t.fetchval(
                "SELECT holding FROM training WHERE project = $1 AND name = $2 AND attempt = $3 AND code = $4",
                project,
                training,
                attempt,
                digest,
            )
        return bool(held)

    async def signing_key(self) -> bytes:
        """What tokens to fetch code are signed with; made by whoever asks first."""
        async with self._database.transaction() as t:
            await t.execute("INSERT INTO code_key (key) VALUES ($1) ON CONFLICT DO NOTHING", secrets.token_bytes(32))
            return bytes(await t.fetchval("SELECT key FROM code_key"))

    async def sweep(self, t: Transaction, uploads_before: datetime, unused_before: datetime) -> None:
        """Delete uploads that nobody goes on with, and archives that no training refers to any more."""
        await t.execute("DELETE FROM code_upload WHERE changed_at < $1", uploads_before)
        await t.execute(
            "DELETE FROM code_archive AS archive WHERE used_at < $1 AND NOT EXISTS"
            " (SELECT FROM training WHERE training.project = archive.project AND code = archive.digest)",
            unused_before,
        )
