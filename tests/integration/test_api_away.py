"""The gateway while NATS or PostgreSQL is away: it says so in words, and goes on by itself afterwards."""

import asyncio
from pathlib import Path

from tests.integration.api_rooms import ADMIN, Door, door
from tests.support.rooms import clean_nats, until
from tests.support.servers import EmbeddedNats, EmbeddedPostgres, FreshDatabase

__all__ = ["clean_nats"]

BASE = "/v1/projects/default"
SPEC = {"name": "digits", "command": ["python", "train.py"]}


async def away(api: Door, method: str, path: str, what: str, *, token: str | None = ADMIN, json: object = None) -> None:
    """The request is refused as one to try again, with nothing of our insides."""
    status, problem, headers = await api.ask(method, path, token=token, json=json)
    assert (status, problem["type"]) == (503, "urn:elearn:problem:unavailable"), problem
    assert int(headers["Retry-After"]) >= 1
    assert what in problem["detail"]


async def answered(api: Door, method: str, path: str, *, token: str | None = ADMIN, json: object = None) -> None:
    """The request is answered, sooner or later."""

    async def status() -> int:
        return (await api.ask(method, path, token=token, json=json))[0]

    await until(status, lambda found: found < 500, timeout=20)


async def test_without_nats_everything_but_the_gateways_own_is_503(
    fresh_database: FreshDatabase, tmp_path: Path
) -> None:
    server = EmbeddedNats(tmp_path / "nats")
    server.start()
    try:
        async with door(server.url, await fresh_database(), tmp_path) as api:
            await answered(api, "POST", f"{BASE}/trainings", json=SPEC)
            server.kill()
            await until(lambda: asyncio.sleep(0, api.bus.up), lambda up: not up)
            await away(api, "POST", f"{BASE}/trainings", "NATS", json=SPEC)
            await away(api, "GET", f"{BASE}/events", "NATS")
            await away(api, "GET", "/readyz", "bus", token=None)
            await away(api, "GET", "/v1/deadletters", "NATS")
            assert (await api.ask("GET", "/healthz", token=None))[0] == 200
            assert (await api.ask("GET", "/v1/projects"))[0] == 200
            server.start()
            await answered(api, "POST", f"{BASE}/trainings", json=SPEC)
            await answered(api, "GET", "/readyz", token=None)
    finally:
        server.stop()


async def test_without_postgresql_what_is_known_goes_on_and_the_rest_is_503(clean_nats: str, tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres")
    await asyncio.to_thread(server.start)
    try:
        async with door(clean_nats, server.url, tmp_path, {"ELEARN_IDENTITY_SECONDS": "0"}) as api:
            _, made, _ = await api.ask("POST", "/v1/tokens", json={"name": "ci"})
            await answered(api, "POST", f"{BASE}/trainings", json=SPEC, token=made["secret"])
            await asyncio.to_thread(server.kill)
            assert (await api.ask("POST", f"{BASE}/trainings", json=SPEC, token=made["secret"]))[0] == 201
            await away(api, "GET", f"{BASE}/trainings", "database", token="never-seen-before")
            await away(api, "POST", "/v1/projects", "database", json={"name": "search"})
            await away(api, "GET", "/v1/projects/search/trainings", "database")
            await away(api, "GET", "/readyz", "database", token=None)
            await asyncio.to_thread(server.start)
            await answered(api, "POST", "/v1/projects", json={"name": "search"})

            async def submits() -> int:
                _, page, _ = await api.ask("GET", "/v1/audit")
                told = [(each["path"], each["status"]) for each in page["items"]]
                return told.count((f"{BASE}/trainings", 201))

            await until(submits, lambda count: count == 2)
    finally:
        await asyncio.to_thread(server.stop)
