"""Bytes through the gateway: files, code, model archives; whole, in part, and never silently half."""

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from shared.contracts.common import CHUNK_BYTES, Chunk
from shared.contracts.model import ReadArchive
from shared.errors import Unavailable
from tests.integration.api_rooms import Door, door, tar
from tests.support.rooms import clean_nats
from tests.support.servers import FreshDatabase

__all__ = ["clean_nats"]

BASE = "/v1/projects/default"
FILES = f"{BASE}/datastores/digits/files"
ARCHIVE = f"{BASE}/models/digits/versions/1/archive"


@pytest.fixture
async def api(clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[Door]:
    environ = {"ELEARN_CODE_LIMIT": str(2 * 1024 * 1024)}
    async with door(clean_nats, await fresh_database(), tmp_path, environ) as running:
        yield running


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


async def test_a_file_is_put_whole_listed_fetched_in_part_and_deleted(api: Door) -> None:
    data = os.urandom(CHUNK_BYTES * 2 + 77)
    status, entry, headers = await api.ask("PUT", f"{FILES}/a%20b/data.bin", data=BytesIO(data))
    assert (status, entry["path"], entry["size"]) == (201, "a b/data.bin", len(data))
    assert headers["Location"] == f"{FILES}/a%20b/data.bin"
    assert api.rooms.verbs().count("datastore.write_file") == 3
    _, page, headers = await api.ask("GET", FILES + "/")
    assert ([each["path"] for each in page["items"]], headers["Elearn-Kind"]) == (["a b/data.bin"], "directory")
    status, got, headers = await api.ask("GET", f"{FILES}/a b/data.bin")
    assert (status, got, headers["Elearn-Kind"]) == (200, data, "file")
    status, got, _ = await api.ask("GET", f"{FILES}/a b/data.bin", headers={"Range": f"bytes={CHUNK_BYTES - 2}-"})
    assert (status, got) == (206, data[CHUNK_BYTES - 2 :])
    _, shown, _ = await api.ask("GET", f"{FILES}/a b/data.bin?stat=true")
    assert shown["kind"] == "file"
    assert (await api.ask("DELETE", f"{FILES}/a b/data.bin"))[0] == 204
    assert (await api.ask("GET", f"{FILES}/a b/data.bin"))[0] == 404


async def test_an_empty_file_is_a_file(api: Door) -> None:
    assert (await api.ask("PUT", f"{FILES}/empty", data=b""))[0] == 201
    status, got, headers = await api.ask("GET", f"{FILES}/empty")
    assert (status, got, headers["Content-Length"]) == (200, b"", "0")


async def test_code_is_checked_then_kept_once(api: Door) -> None:
    packed = tar(**{"train.py": os.urandom(CHUNK_BYTES + 9)})
    path = f"{BASE}/code/{digest(packed)}"
    assert (await api.ask("HEAD", path))[0] == 404
    status, kept, headers = await api.ask("PUT", path, data=BytesIO(packed))
    assert (status, kept["size"], headers["Location"]) == (201, len(packed), path)
    assert (await api.ask("PUT", path, data=BytesIO(packed)))[0] == 200
    assert (await api.ask("HEAD", path))[0] == 200
    assert (await api.ask("GET", path))[1] == packed


async def test_archives_that_can_not_be_code_are_refused_and_leave_nothing(api: Door, tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        archive.addfile(link)
    outside, junk, good = out.getvalue(), b"not an archive at all", tar(a=b"a")
    large = os.urandom(2 * 1024 * 1024 + 1)
    for data, name, expected, words in (
        (outside, digest(outside), 422, "out"),
        (junk, digest(junk), 400, "not a tar"),
        (b"", digest(b""), 400, "not a tar"),
        (good, digest(junk), 422, "digest"),
        (good, "sha256:beef", 422, "64 hexadecimal"),
        (large, digest(large), 413, "limit"),
    ):
        status, problem, _ = await api.ask("PUT", f"{BASE}/code/{name}", data=BytesIO(data))
        assert (status, words in problem["detail"]) == (expected, True), problem
    unannounced = aiohttp.payload.AsyncIterablePayload(_parts(large))
    assert (await api.ask("PUT", f"{BASE}/code/{digest(large)}", data=unannounced))[0] == 413
    assert not api.rooms.code
    assert not api.rooms.uploads
    assert list((tmp_path / "home" / "uploads").iterdir()) == []


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 65536):
        yield data[start : start + 65536]


async def test_a_version_is_downloaded_with_its_digest_and_resumed(api: Door) -> None:
    api.rooms.archive = data = os.urandom(CHUNK_BYTES * 2 + 5)
    status, got, headers = await api.ask("GET", ARCHIVE)
    named = base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert (status, got) == (200, data)
    assert headers["Repr-Digest"] == f"sha-256=:{named}:"
    assert headers["Content-Length"] == str(len(data))
    assert headers["Content-Disposition"] == 'attachment; filename="digits-1.tar"'
    etag = headers["ETag"]
    for asked, condition, expected, part in (
        ("bytes=10-19", etag, 206, data[10:20]),
        (f"bytes={CHUNK_BYTES + 3}-", etag, 206, data[CHUNK_BYTES + 3 :]),
        ("bytes=-7", etag, 206, data[-7:]),
        ("bytes=10-19", '"another"', 200, data),
        ("lines=1-2", etag, 200, data),
    ):
        status, got, headers = await api.ask("GET", ARCHIVE, headers={"Range": asked, "If-Range": condition})
        assert (status, got) == (expected, part), asked
        if expected == 206:
            assert headers["Content-Range"].endswith(f"/{len(data)}")
    status, _, headers = await api.ask("GET", ARCHIVE, headers={"Range": f"bytes={len(data)}-"})
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(data)}")
    assert (await api.ask("GET", ARCHIVE, headers={"If-None-Match": etag}))[0] == 304
    api.rooms.asked.clear()
    status, body, headers = await api.ask("HEAD", ARCHIVE)
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(data)))
    assert api.rooms.verbs() == ["registry.get_version"]


async def test_a_download_that_can_not_go_on_is_broken_off_not_ended(api: Door) -> None:
    api.rooms.archive = os.urandom(CHUNK_BYTES * 3)
    whole = api.rooms.read_archive

    async def failing(request: ReadArchive) -> Chunk:
        if request.offset > 0:
            raise Unavailable("the model store is away")
        return await whole(request)

    api.rooms.answers_instead["registry.read_archive"] = failing
    with pytest.raises(aiohttp.ClientPayloadError):
        await api.ask("GET", ARCHIVE)
    api.rooms.answers_instead["registry.read_archive"] = _away
    assert (await api.ask("GET", ARCHIVE))[0] == 503


async def _away(_: object) -> Chunk:
    raise Unavailable("the model store is away")
