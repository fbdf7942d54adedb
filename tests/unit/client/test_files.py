"""Files in and out of a datastore."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from elearn.client import Client
from shared.errors import Invalid, NotFound
from tests.unit.client.conftest import Answer, problem, reply

ClientOf = Callable[[Answer], Client]
BASE = "/v1/projects/search/datastores/digits/files/"
NOW = "2026-01-31T12:00:00Z"


class Store:
    """A datastore in memory: files by path, and links."""

    def __init__(self, files: dict[str, bytes] | None = None, links: dict[str, str] | None = None) -> None:
        self.files = files or {}
        self.links = links or {}
        self.fail: set[str] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path.decode().startswith(BASE)
        path = unquote(request.url.raw_path.decode().partition("?")[0].removeprefix(BASE))
        if path in self.fail:
            return problem(422, "invalid", f"{path} is refused")
        if request.method == "PUT":
            self.files[path] = request.read()
            assert int(request.headers["Content-Length"]) == len(self.files[path])
            return reply(self._entry(path), 201)
        if request.url.params.get("stat") == "true":
            return reply(self._entry(path)) if self._exists(path) else problem(404, "not-found", f"no {path}")
        if path in self.files:
            return httpx.Response(200, content=self.files[path], headers={"Elearn-Kind": "file"})
        below = f"{path}/" if path else ""
        names = {
            below + each.removeprefix(below).split("/")[0]
            for each in (*self.files, *self.links)
            if each.startswith(below)
        }
        items = [self._entry(each) for each in sorted(names)]
        return reply({"items": items, "next": None}, headers={"Elearn-Kind": "directory"})

    def _exists(self, path: str) -> bool:
        return any(not path or each == path or each.startswith(f"{path}/") for each in (*self.files, *self.links))

    def _entry(self, path: str) -> dict[str, object]:
        if path in self.links:
            return {"path": path, "kind": "symlink", "size": 0, "modified_at": NOW, "target": self.links[path]}
        if path in self.files:
            return {"path": path, "kind": "file", "size": len(self.files[path]), "modified_at": NOW}
        return {"path": path, "kind": "directory", "size": 0, "modified_at": NOW}


def test_a_folder_goes_in_and_comes_out_the_same(client_of: ClientOf, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a b" / "ä").mkdir(parents=True)
    (source / "top.txt").write_bytes(b"top")
    (source / "a b" / "ä" / "100%#?.bin").write_bytes(bytes(3_000_000))
    (source / "empty").write_bytes(b"")
    store = Store()
    client = client_of(store)
    moved: list[str] = []
    assert client.datastores.upload("digits", source, "2026/01", moved=lambda path, _: moved.append(path)) == 3
    assert sorted(store.files) == sorted(moved) == ["2026/01/a b/ä/100%#?.bin", "2026/01/empty", "2026/01/top.txt"]
    assert client.datastores.download("digits", "2026/01", tmp_path / "copy") == 3
    for name in ("top.txt", "a b/ä/100%#?.bin", "empty"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    assert not list((tmp_path / "copy").rglob("*.part"))


@pytest.mark.parametrize(
    ("path", "becomes"),
    [("", "train.npz"), ("data/", "data/train.npz"), ("data/new.npz", "data/new.npz"), ("/x", "x")],
)
def test_where_a_file_goes(client_of: ClientOf, tmp_path: Path, path: str, becomes: str) -> None:
    (tmp_path / "train.npz").write_bytes(b"x")
    store = Store()
    client_of(store).datastores.upload("digits", tmp_path / "train.npz", path)
    assert store.files == {becomes: b"x"}


def test_where_a_file_comes_to(client_of: ClientOf, tmp_path: Path) -> None:
    client = client_of(Store({"2026/train.npz": b"x"}))
    client.datastores.download("digits", "2026/train.npz", tmp_path)
    client.datastores.download("digits", "2026/train.npz", tmp_path / "other.npz")
    assert (tmp_path / "train.npz").read_bytes() == (tmp_path / "other.npz").read_bytes() == b"x"


def test_links_that_stay_inside_are_made_and_others_refused(client_of: ClientOf, tmp_path: Path) -> None:
    inside = Store({"m/1/x": b"x"}, {"m/latest": "1", "m/1/up": "../1/x"})
    client_of(inside).datastores.download("digits", "m", tmp_path / "m")
    assert (tmp_path / "m" / "latest" / "x").read_bytes() == b"x"
    assert (tmp_path / "m" / "1" / "up").read_bytes() == b"x"
    for target in ("/etc/passwd", "../x", "1/../../x", ""):
        outside = Store({"m/1/x": b"x"}, {"m/latest": target})
        with pytest.raises(Invalid, match="not in what is downloaded"):
            client_of(outside).datastores.download("digits", "m", tmp_path / "outside")


def test_a_datastore_that_names_files_elsewhere_is_not_believed(client_of: ClientOf, tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        entry = {"path": "m/../../../evil", "kind": "file", "size": 1, "modified_at": NOW}
        if "stat" in request.url.params:
            return reply({"path": "m", "kind": "directory", "size": 0, "modified_at": NOW})
        return reply({"items": [entry], "next": None}, headers={"Elearn-Kind": "directory"})

    with pytest.raises(Invalid, match="leads outside"):
        client_of(answer).datastores.download("digits", "m", tmp_path / "m")
    assert not (tmp_path.parent / "evil").exists()


def test_reading_and_writing_bytes(client_of: ClientOf) -> None:
    store = Store({"a/b": b"content"})
    client = client_of(store)
    assert client.datastores.read("digits", "a/b") == b"content"
    client.datastores.write("digits", "c", b"new")
    assert store.files["c"] == b"new"
    assert [each.path for each in client.datastores.ls("digits")] == ["a", "c"]
    assert [each.path for each in client.datastores.ls("digits", "a/b")] == ["a/b"]
    assert [each.path for each in client.datastores.walk("digits")] == ["a", "a/b", "c"]
    with pytest.raises(Invalid, match="is a folder"):
        client.datastores.read("digits", "a")
    with pytest.raises(NotFound):
        client.datastores.download("digits", "none", "/tmp/never")


def test_one_file_that_is_refused_ends_the_rest(client_of: ClientOf, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}").write_bytes(b"x")
    store = Store()
    store.fail.add("01")
    with pytest.raises(Invalid, match="01 is refused"):
        client_of(store).datastores.upload("digits", tmp_path)


def test_what_can_not_be_put(client_of: ClientOf, tmp_path: Path) -> None:
    client = client_of(Store())
    with pytest.raises(Invalid, match="neither a file nor a folder"):
        client.datastores.upload("digits", tmp_path / "none")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(Invalid, match="neither a file nor a folder"):
        client.datastores.upload("digits", tmp_path)
    (tmp_path / "dangling").unlink()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(Invalid, match="is a link to a folder"):
        client.datastores.upload("digits", tmp_path)
    for path in ("../x", "a/../b"):
        with pytest.raises(Invalid, match=r"\.\."):
            client.datastores.write("digits", path, b"")
