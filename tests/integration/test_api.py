"""The gateway over real NATS and PostgreSQL: what it makes of requests, and whom it lets in."""

import asyncio
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import TypedDict

import msgspec
import pytest

from shared.contracts.datastore import CreateDatastore, Datastore
from tests.integration.api_rooms import ADMIN, Door, door
from tests.support.rooms import clean_nats, event_where, until
from tests.support.servers import FreshDatabase

__all__ = ["clean_nats"]

SPEC = {"name": "digits", "command": ["python", "train.py"]}
DATASTORE = {"name": "digits", "local": {"path": "/srv/data"}}
BASE = "/v1/projects/default"


@pytest.fixture
async def api(clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[Door]:
    async with door(clean_nats, await fresh_database(), tmp_path) as running:
        yield running


async def test_resources_are_made_listed_and_deleted(api: Door) -> None:
    status, made, headers = await api.ask("POST", f"{BASE}/datastores", json=DATASTORE)
    assert (status, made["created_by"]) == (201, "admin")
    assert headers["Location"] == f"{BASE}/datastores/digits"
    status, page, _ = await api.ask("GET", f"{BASE}/datastores?limit=5&label=team=search&state=ready")
    assert (status, [each["name"] for each in page["items"]], page["next"]) == (200, ["digits"], None)
    asked = api.rooms.asked[-1][1]
    assert (asked.limit, asked.labels, asked.state) == (5, {"team": "search"}, "ready")
    assert (await api.ask("GET", f"{BASE}/datastores/digits"))[0] == 200
    assert (await api.ask("DELETE", f"{BASE}/datastores/digits"))[0] == 204
    assert (await api.ask("POST", f"{BASE}/datastores/digits/probe"))[1]["ok"] is True
    assert (await api.ask("POST", f"{BASE}/datastores/digits/arrivals", json={"path": "today"}))[0] == 202
    assert api.rooms.asked[-1][1].arrival.path == "today"


async def test_a_datastore_that_is_ready_in_a_moment_is_waited_for(api: Door) -> None:
    make = api.rooms.create_datastore

    async def later(request: CreateDatastore) -> Datastore:
        made = msgspec.structs.replace(await make(request), state="provisioning")
        api.rooms.datastores[made.name] = made
        loop = asyncio.get_running_loop()
        loop.call_later(0.05, api.rooms.datastores.update, {made.name: msgspec.structs.replace(made, state="ready")})
        return made

    api.rooms.answers_instead["datastore.create"] = later
    status, made, _ = await api.ask("POST", f"{BASE}/datastores", json=DATASTORE)
    assert (status, made["state"]) == (201, "ready")


async def test_a_submit_is_one_request_to_the_scheduler_and_carries_its_cause(api: Door) -> None:
    await api.ask("GET", BASE)
    api.rooms.asked.clear()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    status, made, headers = await api.ask(
        "POST", f"{BASE}/trainings", json=SPEC, headers={"Idempotency-Key": "once", "traceparent": trace}
    )
    assert (status, made["name"], made["state"]) == (201, "digits-1", "queued")
    assert headers["Location"] == f"{BASE}/trainings/digits-1"
    assert api.rooms.verbs() == ["scheduler.submit"]
    cause = api.rooms.asked[0][2]
    assert (cause.actor, cause.idempotency_key) == ("admin", "once")
    assert cause.traceparent.split("-")[1] == trace.split("-")[1]
    assert headers["traceparent"] == cause.traceparent


async def test_a_dry_run_answers_the_plan_and_makes_nothing(api: Door) -> None:
    status, plan, _ = await api.ask("POST", f"{BASE}/trainings?dry_run=true", json=SPEC)
    assert (status, plan["name"], plan["fits_now"]) == (200, "digits-1", True)
    assert api.rooms.verbs() == ["scheduler.plan"]


async def test_a_training_is_stopped_retried_and_freed(api: Door) -> None:
    await api.ask("POST", f"{BASE}/trainings", json=SPEC)
    for verb in ("stop", "free", "retry"):
        status, shown, _ = await api.ask("POST", f"{BASE}/trainings/digits-1/{verb}")
        assert (status, shown["name"]) == (202, "digits-1")
    await api.ask("POST", f"{BASE}/trainings/digits-1/stop", json={"reason": "wrong data"})
    assert api.rooms.asked[-1][1].reason == "wrong data"
    api.rooms.start("digits-1", "chief-0", "worker-0")
    _, page, _ = await api.ask("GET", f"{BASE}/trainings/digits-1/tasks")
    assert [task["name"] for task in page["items"]] == ["chief-0", "worker-0"]
    assert (await api.ask("GET", f"{BASE}/trainings/digits-1/tasks?attempt=4"))[0] == 404
    api.rooms.end("digits-1")
    assert (await api.ask("POST", f"{BASE}/trainings/digits-1/stop"))[0] == 200


class Options(TypedDict, total=False):
    headers: dict[str, str]
    json: object
    data: object


BAD: tuple[tuple[str, str, Options, int, str | None], ...] = (
    ("POST", "/trainings", {"json": {**SPEC, "gpus": 1}}, 422, "gpus"),
    ("POST", "/trainings", {"json": {**SPEC, "roles": {"ps": {"cpus": 1}}}}, 422, "roles.ps.cpus"),
    ("POST", "/trainings", {"json": {**SPEC, "retries": "2"}}, 422, "retries"),
    ("POST", "/trainings", {"json": {**SPEC, "name": "Digits!"}}, 422, "name"),
    ("POST", "/trainings", {"json": {**SPEC, "name": "digits\n"}}, 422, "name"),
    ("POST", "/trainings", {"json": {"name": "digits"}}, 422, "command"),
    ("POST", "/trainings", {"json": [1, 2]}, 422, "body"),
    ("POST", "/trainings", {"json": SPEC | {"mounts": [{"datastore": "no", "path": "d"}]}}, 422, "mounts.0.datastore"),
    ("POST", "/trainings", {"data": b"{name: digits"}, 400, None),
    ("POST", "/trainings", {"data": b"\xff\xfe"}, 400, None),
    ("POST", "/trainings", {"data": b""}, 400, None),
    ("POST", "/trainings", {"data": b"[" * 100_000}, 422, "body"),
    ("POST", "/trainings", {"data": BytesIO(b" " * (1024 * 1024 + 1))}, 413, None),
    ("POST", "/trainings?dryrun=true", {"json": SPEC}, 422, "dryrun"),
    ("POST", "/trainings?dry_run=perhaps", {"json": SPEC}, 422, "dry_run"),
    ("POST", "/trainings", {"json": SPEC, "headers": {"Idempotency-Key": "a b"}}, 422, "Idempotency-Key"),
    ("POST", "/trainings/digits-1/free", {"json": {"now": True}}, 422, "now"),
    ("GET", "/trainings?limit=0", {}, 422, "limit"),
    ("GET", "/trainings?limit=5&limit=6", {}, 422, "limit"),
    ("GET", "/trainings?state=asleep", {}, 422, "state"),
    ("GET", "/trainings?label=team", {}, 422, "label"),
    ("GET", "/trainings?name=digits", {}, 422, "name"),
    ("GET", "/trainings/digits-9", {}, 404, None),
    ("GET", "/trainings/No_Name", {}, 404, None),
    ("GET", "/models/digits/versions/zero", {}, 404, None),
    ("PUT", "/models/digits/aliases/Best!", {"json": {"version": 1}}, 422, "alias"),
    ("PUT", "/models/digits/aliases/best", {"json": {"version": 0}}, 422, "version"),
    ("GET", "/datastores/digits/files/../../etc/passwd", {}, 404, None),
    ("GET", "/datastores/digits/files/%2e%2e/%2e%2e/x", {}, 404, None),
    ("PUT", "/datastores/digits/files/a%2f..%2f..%2fx", {"data": b"x"}, 422, "path"),
    ("POST", "/triggers", {"json": {}}, 501, None),
    ("GET", "/quota", {}, 501, None),
    ("GET", "/nothing", {}, 404, None),
    ("PUT", "/trainings", {"json": SPEC}, 405, None),
    ("GET", "/events?since=yesterday", {}, 422, "since"),
    ("GET", "/events?subject=elearn.v1.training.failed.other.>", {}, 422, "subject"),
    ("GET", "/events", {"headers": {"Last-Event-ID": "x"}}, 422, "Last-Event-ID"),
)  # fmt: skip


async def test_bad_input_gets_one_clear_error_and_leaves_nothing(api: Door) -> None:
    for method, path, options, status, field in BAD:
        found, problem, _ = await api.ask(method, BASE + path, **options)
        named = [each["field"] for each in problem.get("errors", [])]
        assert (found, named) == (status, [field] if field else []), (method, path, problem)
        assert problem["type"].startswith("urn:elearn:problem:")
    assert not api.rooms.trainings
    assert not api.rooms.files


async def test_nothing_is_found_below_a_project_that_is_not_there(api: Door) -> None:
    for method, path in (("GET", "/trainings"), ("POST", "/datastores"), ("GET", "/events"), ("PUT", "/code/x")):
        status, problem, _ = await api.ask(method, f"/v1/projects/nowhere{path}", json={})
        assert status == 404
        assert "no project 'nowhere'" in problem["detail"]
    assert api.rooms.asked == []


async def test_a_wrong_method_names_the_right_ones(api: Door) -> None:
    status, _, headers = await api.ask("PATCH", f"{BASE}/trainings")
    assert status == 405
    assert headers["Allow"] == "GET, HEAD, POST"
    status, body, _ = await api.ask("HEAD", f"{BASE}/trainings/digits-7")
    assert (status, body) == (404, b"")


async def test_no_or_a_wrong_token_is_401(api: Door) -> None:
    for header in (None, "", "Bearer", "Basic abc", "Bearer wrong", "Bearer " + "x" * 600):
        headers = {} if header is None else {"Authorization": header}
        status, problem, answered = await api.ask("GET", f"{BASE}/trainings", token=None, headers=headers)
        assert (status, problem["title"]) == (401, "Not authenticated"), header
        assert answered["WWW-Authenticate"].startswith("Bearer")
    assert api.rooms.asked == []


async def test_what_is_open_needs_no_token(api: Door) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json"):
        status, _, headers = await api.ask("GET", path, token=None)
        assert status == 200
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert (await api.ask("GET", "/", token=None))[0] == 501


async def test_tokens_do_what_their_scope_and_projects_say(api: Door) -> None:
    async def token(name: str, **more: object) -> str:
        status, made, headers = await api.ask("POST", "/v1/tokens", json={"name": name, **more})
        assert (status, headers["Location"]) == (201, f"/v1/tokens/{name}")
        return str(made["secret"])

    await api.ask("POST", "/v1/projects", json={"name": "search"})
    reader = await token("reader", scope="read")
    writer = await token("writer", scope="write", projects=["search"], lifetime="1h")
    assert (await api.ask("GET", f"{BASE}/trainings", token=reader))[0] == 200
    assert (await api.ask("POST", f"{BASE}/trainings", json=SPEC, token=reader))[0] == 403
    assert (await api.ask("GET", f"{BASE}/trainings", token=writer))[0] == 403
    assert (await api.ask("POST", "/v1/projects/search/trainings", json=SPEC, token=writer))[0] == 201
    assert (await api.ask("GET", "/v1/deadletters", token=writer))[0] == 403
    assert (await api.ask("POST", "/v1/tokens", json={"name": "x"}, token=writer))[0] == 403
    assert api.rooms.asked[-1][2].actor == "writer"
    projects = (await api.ask("GET", "/v1/projects", token=writer))[1]["items"]
    assert [each["name"] for each in projects] == ["search"]

    _, listed, _ = await api.ask("GET", "/v1/tokens?limit=1")
    assert [(each["name"], "secret" in each) for each in listed["items"]] == [("reader", False)]
    _, rest, _ = await api.ask("GET", f"/v1/tokens?cursor={listed['next']}")
    assert [each["name"] for each in rest["items"]] == ["writer"]
    assert (await api.ask("POST", "/v1/tokens", json={"name": "reader"}))[0] == 409
    assert (await api.ask("POST", "/v1/tokens", json={"name": "admin"}))[0] == 422
    assert (await api.ask("POST", "/v1/tokens", json={"name": "x", "lifetime": "soon"}))[0] == 422
    assert (await api.ask("POST", "/v1/tokens", json={"name": "x", "projects": ["gone"]}))[0] == 422
    assert (await api.ask("DELETE", "/v1/tokens/reader"))[0] == 204
    assert (await api.ask("GET", f"{BASE}/trainings", token=reader))[0] == 401
    assert (await api.ask("DELETE", "/v1/tokens/reader"))[0] == 404


async def test_a_token_is_made_once_under_one_key_and_shown_once(api: Door) -> None:
    once = {"Idempotency-Key": "k1"}
    first = await api.ask("POST", "/v1/tokens", json={"name": "ci"}, headers=once)
    again = await api.ask("POST", "/v1/tokens", json={"name": "ci"}, headers=once)
    assert (first[0], again[0]) == (201, 201)
    assert "secret" in first[1]
    assert "secret" not in again[1]
    other = await api.ask("POST", "/v1/tokens", json={"name": "cd"}, headers=once)
    assert other[0] == 409


async def test_projects_are_made_told_of_and_deleted_once_empty(api: Door) -> None:
    status, made, headers = await api.ask("POST", "/v1/projects", json={"name": "search"})
    assert (status, made["created_by"], headers["Location"]) == (201, "admin", "/v1/projects/search")
    assert (await api.ask("POST", "/v1/projects", json={"name": "search"}))[0] == 409
    event = await event_where(api.bus, "elearn.v1.project.created.search.search")
    assert event.source == "elearn/api"
    await api.ask("POST", "/v1/projects/search/datastores", json=DATASTORE)
    status, problem, _ = await api.ask("DELETE", "/v1/projects/search")
    assert status == 409
    assert "datastore digits" in problem["detail"]
    assert (await api.ask("GET", "/v1/projects/search"))[0] == 200
    api.rooms.datastores.clear()
    assert (await api.ask("DELETE", "/v1/projects/search"))[0] == 204
    assert (await api.ask("GET", "/v1/projects/search/trainings"))[0] == 404
    await event_where(api.bus, "elearn.v1.project.deleted.search.search")
    assert (await api.ask("DELETE", "/v1/projects/default"))[0] == 409
    assert (await api.ask("DELETE", "/v1/projects/nowhere"))[0] == 404


async def test_changes_are_kept_in_the_audit_log(api: Door) -> None:
    await api.ask("POST", f"{BASE}/trainings", json=SPEC)
    await api.ask("POST", f"{BASE}/trainings?dry_run=true", json=SPEC)
    await api.ask("POST", f"{BASE}/trainings", json={})
    await api.ask("DELETE", f"{BASE}/trainings/digits-1", token="wrong")
    await api.ask("GET", f"{BASE}/trainings")

    async def audit() -> list[tuple[str, str, str, int]]:
        _, page, _ = await api.ask("GET", "/v1/audit?limit=10&project=default")
        return [(e["actor"], e["method"], e["path"], e["status"]) for e in page["items"]]

    path = f"{BASE}/trainings"
    entries = await until(audit, lambda found: len(found) == 3)
    assert entries == [
        ("", "DELETE", f"{path}/digits-1", 401),
        ("admin", "POST", path, 422),
        ("admin", "POST", path, 201),
    ]
    _, page, _ = await api.ask("GET", "/v1/audit?limit=1")
    _, rest, _ = await api.ask("GET", f"/v1/audit?limit=1&cursor={page['next']}")
    assert [each["status"] for each in rest["items"]] == [422]
    assert (await api.ask("GET", "/v1/audit?cursor=zz"))[0] == 422


async def test_dead_letters_are_listed_and_dropped(api: Door) -> None:
    assert (await api.ask("GET", "/v1/deadletters"))[1] == {"items": [], "next": None}
    assert (await api.ask("POST", "/v1/deadletters/7/resend"))[0] == 404
    assert (await api.ask("DELETE", "/v1/deadletters/7"))[0] == 404
    assert (await api.ask("GET", "/v1/deadletters?cursor=x"))[0] == 422


async def test_a_room_that_is_away_is_503_with_a_time_to_come_back(api: Door) -> None:
    status, problem, headers = await api.ask("GET", f"{BASE}/queue")
    assert (status, int(headers["Retry-After"]) > 0) == (503, True)
    assert "scheduler" in problem["detail"]


async def test_what_is_not_even_http_is_answered_as_a_problem(api: Door) -> None:
    host, _, port = api.url.removeprefix("http://").partition(":")
    head = f"POST /v1/projects HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nConnection: close\r\n"
    for sent in (
        "NONSENSE\r\n\r\n",
        "GET /" + "a" * 20_000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        head + "Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent.encode())
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.split(b" ", 2)[1] == b"400"
        assert b"application/problem+json" in answer
        assert b"urn:elearn:problem:malformed" in answer
        assert b"Traceback" not in answer
        assert b"aiohttp" not in answer


async def test_a_body_is_asked_for_when_the_caller_waits_for_leave(api: Door) -> None:
    status, _, _ = await api.ask("POST", f"{BASE}/trainings", json=SPEC, expect100=True)
    assert status == 201
