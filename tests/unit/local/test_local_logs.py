"""Logs: read from anywhere, to the last line, while they grow."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.local import logs


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def read_all(path: Path, limit: int) -> list[logs.LogChunk]:
    chunks: list[logs.LogChunk] = []
    offset = 0
    while True:
        chunk = logs.read(path, offset, limit)
        if not chunk.text:
            return chunks
        chunks.append(chunk)
        offset = chunk.next


def test_a_missing_log_is_empty(log: Path) -> None:
    assert logs.read(log, 5) == logs.LogChunk(offset=5, text="", next=5, end=True)
    assert logs.tail(log, 3).text == ""


@pytest.mark.parametrize(
    ("content", "limit", "texts"),
    [
        (b"one\ntwo\n", 100, ["one\ntwo\n"]),
        (b"one\ntwo\n", 5, ["one\n", "two\n"]),
        (b"one\nunfinished", 100, ["one\n", "unfinished"]),
        (b"abcdefgh\nx\n", 4, ["abcd", "efgh", "\nx\n"]),
        ("äöü".encode(), 4, ["äö", "ü"]),
        ("aäöü".encode(), 4, ["aä", "öü"]),
        (b"\xff\xfe ok\n", 100, ["�� ok\n"]),
        (b"", 100, []),
    ],
)
def test_comes_in_whole_lines_and_characters(log: Path, content: bytes, limit: int, texts: list[str]) -> None:
    log.write_bytes(content)
    chunks = read_all(log, limit)
    assert [chunk.text for chunk in chunks] == texts
    if chunks:
        assert chunks[-1].end
        assert chunks[-1].next == len(content)


@given(st.text(alphabet="aä€😀\n", max_size=60), st.integers(4, 20))
def test_nothing_is_lost_between_chunks(tmp_path_factory: pytest.TempPathFactory, text: str, limit: int) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_text(text, encoding="utf-8")
    assert "".join(chunk.text for chunk in read_all(path, limit)) == text


def test_an_offset_beyond_the_end_waits_there(log: Path) -> None:
    log.write_text("one\n")
    assert logs.read(log, 100).next == 4


@pytest.mark.parametrize(
    ("content", "count", "text"),
    [
        ("one\ntwo\nthree\n", 2, "two\nthree\n"),
        ("one\ntwo\nthree", 2, "two\nthree"),
        ("one\n", 5, "one\n"),
        ("\n\n\n", 2, "\n\n"),
        ("x" * 20_000 + "\nlast\n", 1, "last\n"),
        ("".join(f"{n}\n" for n in range(10_000)), 3, "9997\n9998\n9999\n"),
    ],
)
def test_the_last_lines(log: Path, content: str, count: int, text: str) -> None:
    log.write_text(content)
    chunk = logs.tail(log, count)
    assert (chunk.text, chunk.offset, chunk.next) == (text, len(content) - len(text), len(content))


def test_the_last_lines_are_bounded(log: Path) -> None:
    log.write_text("".join(f"{n:07}\n" for n in range(10_000)))
    chunk = logs.tail(log, 5_000, limit=100)
    assert chunk.text == "".join(f"{n:07}\n" for n in range(9_988, 10_000))


def test_a_last_line_over_the_limit_is_cut_in_front(log: Path) -> None:
    log.write_text("short\n" + "x" * 1000 + "\n")
    assert logs.tail(log, 1, limit=100).text == "x" * 99 + "\n"


def test_what_was_dropped_is_passed_over(log: Path) -> None:
    with log.open("wb") as file:
        file.seek(1 << 22)
        file.write(b"rest of a line\nkept\n")
    begin = (1 << 22) + len("rest of a line\n")
    for chunk in (logs.read(log, 0), logs.read(log, 5), logs.tail(log, 10)):
        assert chunk == logs.LogChunk(offset=begin, text="kept\n", next=begin + 5, end=True)


def test_long_lines_come_in_pieces() -> None:
    line = "x" * (logs.LONGEST_LINE + 1)
    chunk = logs.LogChunk(offset=0, text=f"a\n{line}\n\nrest", next=0, end=True)
    assert [len(each) for each in logs.lines(chunk)] == [1, logs.LONGEST_LINE, 1, 0, 4]


async def test_following_gives_everything_and_ends_with_the_task(log: Path) -> None:
    written = [f"line {n}\n" for n in range(20)]
    finished = asyncio.Event()

    async def is_finished() -> bool:
        return finished.is_set()

    async def task() -> None:
        with log.open("a") as file:
            for line in written:
                file.write(line)
                file.flush()
                await asyncio.sleep(0)
        finished.set()

    work = asyncio.create_task(task())
    async with asyncio.timeout(10):
        text = "".join([chunk.text async for chunk in logs.follow(log, is_finished)])
    await work
    assert text == "".join(written)


async def test_following_starts_where_it_is_told(log: Path) -> None:
    log.write_text("one\ntwo\n")

    async def is_finished() -> bool:
        return True

    assert [chunk.text async for chunk in logs.follow(log, is_finished, offset=4)] == ["two\n"]
