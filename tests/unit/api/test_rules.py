"""The gateway's pure rules, as tables."""

from datetime import UTC, datetime, timedelta

import pytest

from services.api.lines import LineCutter, last_lines
from services.api.model import (
    Principal,
    Reach,
    StoredToken,
    bearer_of,
    deletion_stands,
    digest_of,
    is_same,
    keep_reason,
    make_token,
    refusal,
)
from services.api.parameters import check_path, decode_query, labels_of, names_in, router_path
from services.api.ranges import Outside, Span, is_known, requested_span, span_of
from services.api.routes.listing import Trainings
from services.api.subjects import narrowed, parse_since
from services.api.table import NoQuery
from shared.contracts.common import Chunk
from shared.contracts.identity import Scope, TokenSpec
from shared.errors import Invalid, NotFound

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

# -- who may do what --------------------------------------------------------------------------------

READER = Principal(name="reader", scope="read")
WRITER = Principal(name="writer", scope="write", projects=("search",))
BOSS = Principal(name="boss", scope="admin")
LOCAL_BOSS = Principal(name="local", scope="admin", projects=("search",))


@pytest.mark.parametrize(
    ("who", "scope", "reach", "project", "words"),
    [
        (READER, "read", "project", "search", None),
        (READER, "write", "project", "search", "'write'"),
        (READER, "admin", "everywhere", "", "'admin'"),
        (WRITER, "read", "project", "search", None),
        (WRITER, "write", "project", "search", None),
        (WRITER, "write", "project", "default", "'default'"),
        (WRITER, "read", "any", "", None),
        (LOCAL_BOSS, "admin", "everywhere", "", "search only"),
        (BOSS, "admin", "everywhere", "", None),
        (BOSS, "write", "project", "default", None),
    ],
)
def test_what_a_token_may_do(who: Principal, scope: Scope, reach: Reach, project: str, words: str | None) -> None:
    reason = refusal(who, scope, reach, project)
    assert (reason is None) if words is None else (reason is not None and words in reason)


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Bearer " + "a" * 513, None),
        ("Bearer é", None),
        ("", None),
        (None, None),
    ],
)
def test_the_token_in_a_header(header: str | None, secret: str | None) -> None:
    assert bearer_of(header) == secret


def test_only_a_digest_is_kept_and_compared() -> None:
    assert is_same(digest_of("a"), digest_of("a"))
    assert not is_same(digest_of("a"), digest_of("b"))
    assert "secret" not in StoredToken.__struct_fields__


def test_a_token_ends_when_its_lifetime_does() -> None:
    token = make_token(TokenSpec(name="ci", lifetime="30d", projects=("a", "b", "a")), "boss", NOW)
    assert (token.expires_at, token.projects, token.created_by) == (NOW + timedelta(days=30), ("a", "b"), "boss")
    assert not token.expired(NOW + timedelta(days=30, seconds=-1))
    assert token.expired(NOW + timedelta(days=30))
    assert not make_token(TokenSpec(name="ci"), "boss", NOW).expired(NOW + timedelta(days=9999))
    for spec in (TokenSpec(name="ci", lifetime="soon"), TokenSpec(name="admin")):
        with pytest.raises(Invalid):
            make_token(spec, "boss", NOW)


def test_a_project_goes_only_when_it_owns_nothing() -> None:
    assert keep_reason("search", {"training": (), "model": ()}) is None
    assert keep_reason("default", {}) is not None
    reason = keep_reason("search", {"training": ("a-1", "a-2"), "model": ()})
    assert reason == "project 'search' still owns training a-1, a-2: delete these first"
    assert deletion_stands(NOW, NOW + timedelta(seconds=59))
    assert not deletion_stands(NOW, NOW + timedelta(seconds=60))
    assert not deletion_stands(None, NOW)


# -- the request's line -----------------------------------------------------------------------------


def test_paths_for_the_router() -> None:
    path = "/v1/projects/{project}/servings/{name}:predict"
    assert names_in(path) == ("project", "name")
    assert router_path(path) == "/v1/projects/{project:[^/:]+}/servings/{name:[^/:]+}:predict"
    assert router_path("/files/{path}") == "/files/{path:.*}"


@pytest.mark.parametrize(
    ("values", "new", "error"),
    [
        ({"name": "digits-1"}, (), None),
        ({"name": "Digits"}, (), NotFound),
        ({"name": "Digits"}, ("name",), Invalid),
        ({"name": "a" * 41}, (), NotFound),
        ({"name": "a\n"}, (), NotFound),
        ({"n": "1"}, (), None),
        ({"n": "0"}, (), NotFound),
        ({"n": "9" * 30}, (), NotFound),
        ({"digest": "sha256:" + "a" * 64}, ("digest",), None),
        ({"digest": "md5:1"}, ("digest",), Invalid),
        ({"path": "any/../thing"}, (), None),
    ],
)
def test_path_parameters(values: dict[str, str], new: tuple[str, ...], error: type[Exception] | None) -> None:
    if error is None:
        check_path(values, frozenset(new), "thing")
    else:
        with pytest.raises(error):
            check_path(values, frozenset(new), "thing")


def test_queries_are_decoded_strictly() -> None:
    query = decode_query(Trainings, [("limit", "5"), ("label", "a=b"), ("label", "c=d"), ("state", "queued")])
    assert query == Trainings(limit=5, label=("a=b", "c=d"), state="queued")
    assert decode_query(Trainings, []) == Trainings()
    assert decode_query(NoQuery, []) == NoQuery()


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ([("colour", "red")], "colour"),
        ([("limit", "many")], "limit"),
        ([("limit", "501")], "limit"),
        ([("limit", "5"), ("limit", "5")], "limit"),
        ([("state", "asleep")], "state"),
    ],
)
def test_queries_are_refused_by_name(pairs: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode_query(Trainings, pairs)
    assert [each.field for each in caught.value.errors] == [field]


def test_labels_in_a_query() -> None:
    assert labels_of(["team=search", "x=", "a=b=c".replace("=c", "")]) == {"team": "search", "x": "", "a": "b"}
    for bad in ("team", "=x", "te am=x", "team=a b"):
        with pytest.raises(Invalid):
            labels_of([bad])


# -- ranges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (0, 100, False)),
        ("bytes=0-9", (0, 10, True)),
        ("bytes=90-", (90, 10, True)),
        ("bytes=90-200", (90, 10, True)),
        ("bytes=-10", (90, 10, True)),
        ("bytes=-500", (0, 100, True)),
        ("bytes = 5 - 6", (5, 2, True)),
        ("bytes=9-5", (0, 100, False)),
        ("bytes=-", (0, 100, False)),
        ("bytes=0-1,5-6", (0, 100, False)),
        ("rows=0-1", (0, 100, False)),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int, bool]) -> None:
    start, length, partial = expected
    assert span_of(header, 100) == Span(start=start, length=length, partial=partial)


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0)])
def test_ranges_outside(header: str, size: int) -> None:
    with pytest.raises(Outside):
        span_of(header, size)


def test_conditions() -> None:
    whole = Span(start=0, length=9, partial=False)
    assert requested_span({"Range": "bytes=1-", "If-Range": '"old"'}, '"new"', 9) == whole
    assert requested_span({"Range": "bytes=1-", "If-Range": '"new"'}, '"new"', 9).start == 1
    assert is_known({"If-None-Match": '"a", W/"new"'}, '"new"')
    assert is_known({"If-None-Match": "*"}, '"new"')
    assert not is_known({"If-None-Match": '"a"'}, '"new"')
    assert not is_known({}, '"new"')


# -- events and lines -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (None, "elearn.v1.*.*.search.*"),
        (">", "elearn.v1.*.*.search.*"),
        ("elearn.v1.>", "elearn.v1.*.*.search.*"),
        ("elearn.v1.training.>", "elearn.v1.training.*.search.*"),
        ("elearn.v1.training.failed.>", "elearn.v1.training.failed.search.*"),
        ("elearn.v1.*.*.search.>", "elearn.v1.*.*.search.*"),
        ("elearn.v1.training.failed.search.>", "elearn.v1.training.failed.search.*"),
        ("elearn.v1.training.*.*.digits-1", "elearn.v1.training.*.search.digits-1"),
        ("*.*.training.failed.search.digits-1", "elearn.v1.training.failed.search.digits-1"),
        ("elearn.v1.training.failed.other.>", None),
        ("elearn.v1.training", None),
        ("elearn.v1.training.failed.search", None),
        ("elearn.v1.training.failed.search.a.b", None),
        ("elearn.v1.training.failed.search.a.>", None),
        ("elearn.v2.>", None),
        ("elearn.rpc.>", None),
        ("elearn..v1", None),
        ("elearn.>.x", None),
        ("", None),
    ],
)
def test_a_stream_is_of_one_project(subject: str | None, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(Invalid) as caught:
            narrowed(subject, "search")
        assert caught.value.errors[0].field == "subject"
    else:
        assert narrowed(subject, "search") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("17", 17),
        ("2026-01-31T11:00:00Z", NOW - timedelta(hours=1)),
        ("2026-01-31T12:00:00 01:00", NOW - timedelta(hours=1)),
        ("1h", NOW - timedelta(hours=1)),
        ("2026-01-31T11:00:00", None),
        ("yesterday", None),
        ("", None),
        ("-5", None),
    ],
)
def test_since(text: str, expected: int | datetime | None) -> None:
    if expected is None:
        with pytest.raises(Invalid):
            parse_since(text, NOW)
    else:
        assert parse_since(text, NOW) == expected


def test_lines_get_their_prefix_however_they_come() -> None:
    cutter = LineCutter("[a] ")
    parts = [cutter.cut(part) for part in (b"on", b"e\ntwo\nth", b"ree", b"\n", b"")]
    assert b"".join(parts) == b"[a] one\n[a] two\n[a] three\n"
    assert cutter.rest() == b""
    assert cutter.cut(b"four") == b""
    assert cutter.rest() == b"[a] four\n"
    long = cutter.cut(b"x" * 70_000)
    assert long == b"[a] " + b"x" * 70_000 + b"\n"
    assert cutter.rest() == b""


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("lines", [0, 1, 2, 5, 19, 20, 21])
@pytest.mark.parametrize("block", [1, 3, 7, 64, 1000])
async def test_the_last_lines_are_found_from_behind(end: bytes, lines: int, block: int) -> None:
    text = b"\n".join(b"line %d" % number for number in range(20)) + end

    async def read(offset: int, length: int) -> Chunk:
        start = max(0, len(text) + offset) if offset < 0 else offset
        return Chunk(data=text[start : start + length], offset=start, total=len(text))

    begin = await last_lines(read, lines, block)
    assert text[begin:] == b"".join(text.splitlines(keepends=True)[20 - min(lines, 20) :])
