"""Nonsense at every route: an answer in words each time, never a trace, never a hang."""

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from services.api.parameters import names_in
from services.api.routes.everything import ROUTES
from shared.paging import encode_cursor
from tests.integration.api_rooms import Door, door
from tests.support.rooms import clean_nats
from tests.support.servers import FreshDatabase

__all__ = ["clean_nats"]

NAMES = (
    "digits",
    "default",
    "..",
    ".",
    "%00",
    "a\nb",
    "ä",
    "1" * 50,
    "-",
    "a b",
    "{}",
    "*",
    ">",
    "'; DROP TABLE token; --",
)
VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1, 2**70, 1.5, "", "digits", "\0", "\ud800", "x" * 3000, [], {}, [[]], {"": ""}, ["a", 1],
)  # fmt: skip
FIELDS = (
    "name",
    "command",
    "kind",
    "local",
    "path",
    "model",
    "version",
    "alias",
    "roles",
    "scope",
    "projects",
    "reason",
)


@pytest.fixture
async def api(clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[Door]:
    async with door(clean_nats, await fresh_database(), tmp_path) as running:
        yield running


def body(chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(40))
    if kind == 1:
        return json.dumps(chance.choice(VALUES)).encode()
    value: object = {chance.choice(FIELDS): chance.choice(VALUES) for _ in range(chance.randrange(5))}
    return json.dumps(value).encode()


async def test_nonsense_is_answered_in_words(api: Door) -> None:
    chance = random.Random(20260131)
    streams = {"readLogs", "streamEvents"}
    for route in [each for each in ROUTES if each.operation not in streams for _ in range(8)]:
        path = route.path
        for name in names_in(path):
            value = "default" if name == "project" and chance.random() < 0.7 else chance.choice(NAMES)
            path = path.replace(f"{{{name}}}", quote(value, safe=""))
        if chance.random() < 0.3:
            path += f"?{quote(chance.choice(FIELDS))}={quote(str(chance.choice(VALUES)), errors='replace')}"
        sent = body(chance) if route.method in ("POST", "PUT", "PATCH") else None
        status, answer, _ = await api.ask(route.method, path, data=sent, allow_redirects=False)
        assert status != 500, (route.method, path, sent, answer)
    for method, path, document in (
        ("POST", "/v1/projects", {"name": "nul", "description": "a\0b"}),
        ("GET", f"/v1/projects?cursor={encode_cursor(chr(0))}", None),
        ("GET", f"/v1/audit?cursor={encode_cursor(2**62)}", None),
        ("GET", f"/v1/deadletters?cursor={10**18 - 1}", None),
        ("GET", "/v1/audit?actor=%00", None),
    ):
        status, answer, _ = await api.ask(method, path, json=document)
        assert status in (200, 422), (path, answer)
    assert (await api.ask("GET", "/readyz"))[0] == 200
