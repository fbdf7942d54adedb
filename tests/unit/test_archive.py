"""Folders in, folders out, and everything an archive may try in between."""

import contextlib
import gzip
import io
import os
import random
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.archive import Limits, digest_of, pack, unpack, verify
from shared.errors import Conflict, ElearnError, Invalid, Malformed, TooLarge
from shared.ignore import Ignore

SMALL = Limits(total=10_000, files=20, compressed=20_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "package").mkdir(parents=True)
    (code / "empty").mkdir()
    (code / "train.py").write_text("print('hi')\n")
    (code / "run.sh").write_text("#!/bin/sh\n")
    (code / "run.sh").chmod(0o755)
    (code / "package" / "ünïcode.txt").write_text("x")
    (code / "package" / "link").symlink_to("../train.py")
    return code


def tree(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


class TestPack:
    @pytest.mark.parametrize("compress", [True, False])
    def test_comes_back_as_it_was(self, folder: Path, tmp_path: Path, compress: bool) -> None:
        packed = pack(folder, tmp_path / "a.tar", compress=compress)
        assert packed.digest == digest_of(tmp_path / "a.tar")
        assert packed.size == (tmp_path / "a.tar").stat().st_size
        contents = verify(tmp_path / "a.tar")
        assert (contents.files, contents.total) == (packed.files, packed.total)
        assert unpack(tmp_path / "a.tar", tmp_path / "out") == contents
        assert tree(tmp_path / "out") == tree(folder)
        assert not list(tmp_path.glob(".*"))

    def test_is_the_same_whoever_packs_it_and_when(self, folder: Path, tmp_path: Path) -> None:
        first = pack(folder, tmp_path / "a")
        os.utime(folder / "train.py", (1, 1))
        (folder / "train.py").chmod(0o600)
        assert pack(folder, tmp_path / "b") == first
        (folder / "train.py").write_text("changed")
        assert pack(folder, tmp_path / "b").digest != first.digest

    def test_leaves_out_what_is_ignored(self, folder: Path, tmp_path: Path) -> None:
        for name in (".git/config", "package/__pycache__/x.pyc", ".venv/bin/python", "data/big", "data/keep"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x")
        (folder / ".elearnignore").write_text("data/*\n!data/keep\n")
        before = tree(folder)
        pack(folder, tmp_path / "a")
        unpack(tmp_path / "a", tmp_path / "out")
        gone = set(before) - set(tree(tmp_path / "out"))
        assert gone == {
            ".git",
            ".git/config",
            "package/__pycache__",
            "package/__pycache__/x.pyc",
            ".venv",
            ".venv/bin",
            ".venv/bin/python",
            "data/big",
        }
        pack(folder, tmp_path / "b", everything=True)
        unpack(tmp_path / "b", tmp_path / "whole")
        assert tree(tmp_path / "whole") == before

    @pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "package/../../outside"])
    def test_refuses_links_that_lead_out(self, folder: Path, tmp_path: Path, target: str) -> None:
        (folder / "bad").symlink_to(target)
        with pytest.raises(Invalid, match="bad is a link that leads out of the folder"):
            pack(folder, tmp_path / "a")
        assert not (tmp_path / "a").exists()

    def test_refuses_what_is_no_file(self, folder: Path, tmp_path: Path) -> None:
        os.mkfifo(folder / "pipe")
        with pytest.raises(Invalid, match="pipe is neither file, folder nor link"):
            pack(folder, tmp_path / "a")

    def test_refuses_names_that_are_not_utf8(self, folder: Path, tmp_path: Path) -> None:
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).write_text("")
        with pytest.raises(Invalid, match="not UTF-8"):
            pack(folder, tmp_path / "a")

    def test_refuses_what_is_no_folder(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(Invalid, match="is not a folder"):
            pack(folder / "train.py", tmp_path / "a")

    def test_names_the_largest_when_there_is_too_much(self, folder: Path, tmp_path: Path) -> None:
        (folder / "big.bin").write_bytes(b"x" * 20_000)
        with pytest.raises(TooLarge, match=r"such as big\.bin \(20,000\)"):
            pack(folder, tmp_path / "a", limits=SMALL)
        (folder / "big.bin").unlink()
        for n in range(30):
            (folder / str(n)).touch()
        with pytest.raises(TooLarge, match="more than 20 files"):
            pack(folder, tmp_path / "a", limits=SMALL)
        assert not list(tmp_path.glob(".packing*"))

    def test_refuses_what_is_too_large_when_packed(self, folder: Path, tmp_path: Path) -> None:
        (folder / "noise").write_bytes(random.Random(1).randbytes(9_000))
        with pytest.raises(TooLarge, match="bytes when packed"):
            pack(folder, tmp_path / "a", limits=Limits(total=10_000, compressed=5_000))


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    return info, content


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.SYMTYPE, link=target)


def bomb() -> bytes:
    return gzip.compress(archive(member("zeros", bytes(1_000_000))))


def long_header() -> bytes:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = 2 << 20
    return info.tobuf() + bytes(2 << 20)


def headers_upon_headers() -> bytes:
    info = tarfile.TarInfo("x")
    info.type = tarfile.XHDTYPE
    info.size = 512
    return (info.tobuf() + b"11 foo=bar\n".ljust(512, b"\0")) * 2000


GOOD = archive(member("a/b.txt", b"hello"), member("c.txt", b"x" * 2000))

EVIL: list[tuple[str, Callable[[], bytes], type[ElearnError], str]] = [
    ("nothing", lambda: b"", Malformed, "not a tar archive"),
    ("text", lambda: b"hello" * 1000, Malformed, "not a tar archive"),
    ("a zip", lambda: b"PK\x03\x04" + bytes(1000), Malformed, "not a tar archive"),
    ("gzip of text", lambda: gzip.compress(b"hello" * 1000), Malformed, "cut off or damaged"),
    ("gzip of nothing", lambda: gzip.compress(b""), Malformed, "cut off or damaged"),
    ("cut gzip", lambda: gzip.compress(GOOD)[:-9], Malformed, "cut off or damaged"),
    ("gzip with a bad checksum", lambda: gzip.compress(GOOD)[:-8] + b"\0" * 8, Malformed, "cut off or damaged"),
    ("cut in a file", lambda: GOOD[: 512 * 4], Malformed, "cut off or damaged"),
    ("cut after a file", lambda: GOOD[: 512 * 2], Malformed, "cut off or damaged"),
    ("cut in a header", lambda: GOOD[: 512 * 2 + 100], Malformed, "cut off or damaged"),
    ("a damaged header", lambda: GOOD[:1024] + b"\1" * 512 + GOOD[1536:], Malformed, "cut off or damaged"),
    ("absolute", lambda: archive(member("/etc/x")), Invalid, "absolute path"),
    ("dots", lambda: archive(member("../x")), Invalid, r"leaves the folder by '\.\.'"),
    ("dots inside", lambda: archive(member("a/../../x")), Invalid, r"leaves the folder by '\.\.'"),
    ("link to absolute", lambda: archive(link("l", "/etc")), Invalid, "link that leads outside"),
    ("link upwards", lambda: archive(link("a/l", "../../x")), Invalid, "link that leads outside"),
    ("link to nothing", lambda: archive(link("l", "")), Invalid, "link that leads outside"),
    (
        "links upon links",
        lambda: archive(link("d/up", ".."), link("out", "d/up/..")),
        Invalid,
        "link that leads outside",
    ),
    ("through a link", lambda: archive(link("l", "d"), member("l/x")), Invalid, "l is in the archive twice"),
    ("link over a folder", lambda: archive(member("l/x"), link("l", "d")), Invalid, "l is in the archive twice"),
    ("twice", lambda: archive(member("x"), member("x")), Invalid, "x is in the archive twice"),
    ("twice by another name", lambda: archive(member("a/x"), member("./a//x")), Invalid, "twice"),
    ("below a file", lambda: archive(member("x"), member("x/y")), Invalid, "x is in the archive twice"),
    ("hard link outside", lambda: archive(member("x", kind=tarfile.LNKTYPE, link="../y")), Invalid, "leaves"),
    (
        "hard link to a link",
        lambda: archive(link("l", "d"), member("x", kind=tarfile.LNKTYPE, link="l")),
        Invalid,
        "which is no file before it",
    ),
    ("a device", lambda: archive(member("x", kind=tarfile.CHRTYPE)), Invalid, "neither an ordinary file"),
    ("a pipe", lambda: archive(member("x", kind=tarfile.FIFOTYPE)), Invalid, "neither an ordinary file"),
    ("the folder as a file", lambda: archive(member(".")), Invalid, "a file named"),
    ("a long name", lambda: archive(member("x" * 2000)), Invalid, "too long or too deep"),
    ("a long part", lambda: archive(member("x" * 300)), Invalid, "too long"),
    ("deep", lambda: archive(member("d/" * 100 + "x")), Invalid, "too long or too deep"),
    ("not utf-8", lambda: archive(member("\udcff")), Invalid, "not UTF-8"),
    ("a bomb", bomb, TooLarge, "unpacks to more than 10,000 bytes"),
    ("many files", lambda: archive(*(member(str(n)) for n in range(21))), TooLarge, "more than 20 files"),
    ("many folders", lambda: archive(*(member(f"{n}/a/b/x") for n in range(15))), TooLarge, "more than 20 files"),
    ("much sent", lambda: archive(member("x", bytes(30_000))), TooLarge, "10,000|20,000"),
    ("a long header", long_header, (Invalid), "far too long"),
    ("headers upon headers", headers_upon_headers, Malformed, "headers upon headers|cut off"),
]


SEEN_ON_DISK_ONLY = {"links upon links", "a long part"}


class TestUnpack:
    @pytest.mark.parametrize(("make", "error", "words"), [each[1:] for each in EVIL], ids=[each[0] for each in EVIL])
    def test_refuses_and_leaves_nothing(
        self, tmp_path: Path, make: Callable[[], bytes], error: type[ElearnError], words: str
    ) -> None:
        limits = SMALL if error is TooLarge else Limits()
        inner = tmp_path / "inner"
        inner.mkdir()
        with pytest.raises(error, match=words) as refused:
            unpack(io.BytesIO(make()), inner / "out", limits)
        assert "\n" not in refused.value.detail
        assert list(tmp_path.rglob("*")) == [inner]

    @pytest.mark.parametrize(("make", "error"), [each[1:3] for each in EVIL if each[0] not in SEEN_ON_DISK_ONLY])
    def test_verify_refuses_them_too(self, make: Callable[[], bytes], error: type[ElearnError]) -> None:
        with pytest.raises(error):
            verify(io.BytesIO(make()), SMALL if error is TooLarge else Limits())

    def test_takes_what_tar_makes(self, tmp_path: Path) -> None:
        content = archive(
            member("./", kind=tarfile.DIRTYPE),
            member("./a", b"1"),
            member("./same", kind=tarfile.LNKTYPE, link="./a"),
            member("./d/", kind=tarfile.DIRTYPE),
            member("./d/", kind=tarfile.DIRTYPE),
            link("./d/up", "../a"),
            link("./dangling", "nowhere"),
            member("./" + "d/" * 40 + "long" * 20, b"2"),
        )
        unpack(io.BytesIO(content), tmp_path / "out")
        assert (tmp_path / "out" / "same").read_text() == "1"
        assert (tmp_path / "out" / "d" / "up").read_text() == "1"
        assert (tmp_path / "out" / "dangling").is_symlink()

    def test_takes_no_mode_but_executable(self, tmp_path: Path) -> None:
        info, content = member("x", b"1")
        info.mode = 0o7777
        unpack(io.BytesIO(archive((info, content), member("y"))), tmp_path / "out")
        assert stat.S_IMODE((tmp_path / "out" / "x").stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / "out" / "y").stat().st_mode) == 0o644

    def test_replaces_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("")
        with pytest.raises(Conflict, match="exists already"):
            unpack(io.BytesIO(GOOD), tmp_path / "out")
        assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_no_damage_escapes_or_goes_unsaid(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("damaged") / "inner"
        content = bytearray(archive(member("a/b", b"hello"), link("l", "a/b"), member("c", b"x" * 600)))
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(ElearnError):
            unpack(io.BytesIO(bytes(content)), folder / "out", SMALL)
        assert {path.name for path in folder.parent.iterdir()} <= {"inner"}
        assert {path.name for path in folder.iterdir()} <= {"out"}

    @settings(max_examples=40)
    @given(
        st.dictionaries(
            st.lists(
                st.text("abc.é ", min_size=1, max_size=4).filter(lambda s: s.strip(".")), min_size=1, max_size=3
            ).map("/".join),
            st.binary(max_size=50),
            max_size=8,
        )
    )
    def test_any_folder_comes_back(self, tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
        top = tmp_path_factory.mktemp("any")
        (top / "in").mkdir()
        for name, content in files.items():
            path = top / "in" / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue
        packed = pack(top / "in", top / "packed", everything=True)
        unpack(top / "packed", top / "out")
        assert tree(top / "out") == tree(top / "in")
        assert pack(top / "out", top / "again", everything=True) == packed


class TestIgnore:
    @pytest.mark.parametrize(
        ("pattern", "ignored", "kept"),
        [
            ("*.log", ["a.log", "d/a.log"], ["a.log.txt", "log"]),
            ("/top", ["top"], ["d/top"]),
            ("a/b", ["a/b"], ["d/a/b", "b"]),
            ("folder/", ["folder/"], ["folder"]),
            ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["z", "b/z"]),
            ("**/x", ["x", "d/x"], ["y"]),
            ("a/**", ["a/b", "a/b/c"], ["a", "b"]),
            ("file?.txt", ["file1.txt"], ["file10.txt", "file/.txt"]),
            ("[ab].py", ["a.py", "b.py"], ["c.py"]),
            ("[!ab].py", ["c.py"], ["a.py"]),
            ("# comment", [], ["# comment"]),
            (r"\#file", ["#file"], []),
            (r"\!file", ["!file"], []),
            ("a b  ", ["a b"], ["a b  "]),
            ("", [], ["x"]),
            ("/", [], ["x"]),
            ("a.b", ["a.b"], ["aXb"]),
            ("[", ["["], ["x"]),
            ("[]]", ["]"], ["x"]),
        ],
    )
    def test_patterns(self, pattern: str, ignored: list[str], kept: list[str]) -> None:
        rules = Ignore([pattern])
        for path, expected in [(path, True) for path in ignored] + [(path, False) for path in kept]:
            assert rules.ignores(path.rstrip("/"), is_directory=path.endswith("/")) is expected, path

    def test_the_last_match_decides(self) -> None:
        rules = Ignore(["*.bin", "!keep.bin", "!__pycache__/"])
        assert rules.ignores("x.bin", is_directory=False)
        assert not rules.ignores("keep.bin", is_directory=False)
        assert not rules.ignores("__pycache__", is_directory=True)

    @given(st.text(max_size=20))
    def test_no_pattern_breaks_it(self, pattern: str) -> None:
        Ignore([pattern]).ignores("some/path", is_directory=False)
