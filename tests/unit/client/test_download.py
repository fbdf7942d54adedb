"""Downloads of model versions: resumed, checked, unpacked whole or not at all."""

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from elearn.client import Client, Damaged
from shared.archive import pack
from shared.contracts.model import Version, VersionState
from shared.contracts.training import Lineage
from shared.errors import Conflict, Invalid, Unavailable
from tests.unit.client.conftest import Answer, problem, reply

ClientOf = Callable[[Answer], Client]


class Registry:
    """Gives one version; each answer breaks off after so many bytes."""

    def __init__(self, folder: Path, *, cuts: tuple[int, ...] = (), state: VersionState = "ready") -> None:
        source = folder / "source"
        (source / "variables").mkdir(parents=True)
        (source / "saved_model.pb").write_bytes(b"graph")
        (source / "variables" / "variables.index").write_bytes(bytes(range(256)) * 40)
        packed = pack(source, folder / "model.tar", compress=False, everything=True)
        self.archive = (folder / "model.tar").read_bytes()
        self.cuts = list(cuts)
        self.ranges: list[str | None] = []
        self.ranged = True
        self.version = Version(
            project="search",
            model="digits",
            number=1,
            state=state,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            lineage=Lineage(),
            digest=packed.digest if state == "ready" else "",
            archive_size=packed.size,
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/versions/1"):
            return reply(self.version)
        assert request.url.path.endswith("/versions/1/archive")
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranged else 0
        return httpx.Response(206 if start else 200, content=self._body(start))

    def _body(self, start: int) -> Iterator[bytes]:
        if self.cuts:
            yield self.archive[start : start + self.cuts.pop(0)]
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")
        yield self.archive[start:]


def test_a_version_becomes_a_folder(client_of: ClientOf, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    seen: list[tuple[int, int]] = []
    target = client_of(registry).models.download(
        "digits", 1, tmp_path / "new" / "digits-1", progress=lambda there, total: seen.append((there, total))
    )
    assert (target / "saved_model.pb").read_bytes() == b"graph"
    assert (target / "variables" / "variables.index").stat().st_size == 10240
    assert [each.name for each in target.parent.iterdir()] == ["digits-1"]
    assert seen[-1] == (len(registry.archive), len(registry.archive))


def test_what_breaks_off_goes_on_where_it_was(client_of: ClientOf, tmp_path: Path) -> None:
    registry = Registry(tmp_path, cuts=(1000, 2000))
    client_of(registry).models.download("digits", 1, tmp_path / "digits.tar", unpack=False)
    assert (tmp_path / "digits.tar").read_bytes() == registry.archive
    assert registry.ranges == [None, "bytes=1000-", "bytes=3000-"]


def test_a_gateway_without_ranges_gives_it_from_the_start(client_of: ClientOf, tmp_path: Path) -> None:
    registry = Registry(tmp_path, cuts=(1000,))
    registry.ranged = False
    client_of(registry).models.download("digits", 1, tmp_path / "digits.tar", unpack=False)
    assert (tmp_path / "digits.tar").read_bytes() == registry.archive


def test_another_try_goes_on_with_what_the_first_one_left(
    client_of: ClientOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    registry = Registry(tmp_path, cuts=(1000, *(0 for _ in range(5))))
    client = client_of(registry)
    with pytest.raises(Unavailable, match="was lost"):
        client.models.download("digits", 1, tmp_path / "digits-1")
    assert not (tmp_path / "digits-1").exists()
    registry.ranges.clear()
    client.models.download("digits", 1, tmp_path / "digits-1")
    assert registry.ranges == ["bytes=1000-"]
    assert (tmp_path / "digits-1" / "saved_model.pb").exists()


def test_other_bytes_than_promised_are_thrown_away(client_of: ClientOf, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.archive = registry.archive[:-1] + b"x"
    with pytest.raises(Damaged, match=f"sha256:{hashlib.sha256(registry.archive).hexdigest()}"):
        client_of(registry).models.download("digits", 1, tmp_path / "digits-1")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.tar", "source"]


def test_what_is_there_is_not_written_over(client_of: ClientOf, tmp_path: Path) -> None:
    client = client_of(Registry(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "full", tmp_path / "model.tar"):
        with pytest.raises(Invalid, match="is there already"):
            client.models.download("digits", 1, target)
    assert (client.models.download("digits", 1, tmp_path / "empty") / "saved_model.pb").exists()


def test_a_version_that_is_not_ready_is_not_downloaded(client_of: ClientOf, tmp_path: Path) -> None:
    with pytest.raises(Conflict, match="digits version 1 is saving"):
        client_of(Registry(tmp_path, state="saving")).models.download("digits", 1, tmp_path / "x")


def test_a_version_that_is_deleted_meanwhile(client_of: ClientOf, tmp_path: Path) -> None:
    registry = Registry(tmp_path)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/archive"):
            return problem(404, "not-found", "there is no version 1")
        return registry(request)

    with pytest.raises(Exception, match="there is no version 1"):
        client_of(answer).models.download("digits", 1, tmp_path / "x")
    assert not (tmp_path / "x").exists()
