"""The archive's layout: a real tar, the same from every offset."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.archive import Entry, Layout

FILES = {
    "saved_model.pb": b"p" * 700,
    "variables/variables.index": b"",
    "variables/variables.data-00000-of-00001": bytes(range(256)) * 5,
    "assets/" + "x" * 150: b"long",
    "assets/ümlaut": b"block" * 103,
}
ENTRIES = [
    *(Entry(path=path, size=len(data)) for path, data in FILES.items()),
    Entry(path="variables", size=-1),
    Entry(path="assets", size=-1),
]


def read(layout: Layout, offset: int, length: int) -> bytes:
    parts = []
    for piece in layout.pieces(offset, length):
        if piece.path is None:
            parts.append(piece.data)
        else:
            parts.append(FILES[piece.path][piece.offset : piece.offset + piece.length])
    return b"".join(parts)


WHOLE = read(Layout(ENTRIES), 0, 10**9)


def test_it_is_a_tar_of_these_files() -> None:
    assert len(WHOLE) == Layout(ENTRIES).size
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
        members = tar.getmembers()
        content = {each.name: handle.read() for each in members if (handle := tar.extractfile(each)) is not None}
    assert content == FILES
    folders = [each.name for each in members if each.isdir()]
    assert folders == ["assets", "variables"]
    names = [each.name for each in members]
    assert names.index("assets") < names.index("assets/ümlaut")


def test_it_is_what_tarfile_itself_writes() -> None:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in sorted(ENTRIES, key=lambda each: each.path.split("/")):
            info = tarfile.TarInfo(entry.path)
            info.type = tarfile.DIRTYPE if entry.is_folder else tarfile.REGTYPE
            info.mode = 0o755 if entry.is_folder else 0o644
            info.size = max(0, entry.size)
            tar.addfile(info, io.BytesIO(FILES.get(entry.path, b"")))
    assert written.getvalue() == WHOLE


def test_order_of_entries_does_not_matter() -> None:
    assert read(Layout(ENTRIES[::-1]), 0, 10**9) == WHOLE


@given(offset=st.integers(0, len(WHOLE) + 10), length=st.integers(0, 3000))
@settings(max_examples=300, deadline=None)
def test_any_part_is_a_part_of_the_whole(offset: int, length: int) -> None:
    assert read(Layout(ENTRIES), offset, length) == WHOLE[offset : offset + length]


@pytest.mark.parametrize("entries", [[], [Entry(path="a", size=-1)], [Entry(path="a", size=9 * 2**30)]])
def test_edges(entries: list[Entry]) -> None:
    layout = Layout(entries)
    assert layout.size % tarfile.RECORDSIZE == 0
    end = layout.pieces(layout.size - 512, 512)
    assert end[0].data == bytes(512)
    assert layout.pieces(layout.size, 10) == []
