"""What goes on for long: logs and events, live and replayed; and what is proxied: predictions, boards."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from elearn.up import ports
from shared.contracts.common import DEFAULT_PROJECT, Chunk
from shared.contracts.serving import Endpoint
from shared.errors import Unavailable
from tests.integration.api_rooms import ADMIN, Door, door
from tests.support.rooms import clean_nats, connected, until
from tests.support.servers import FreshDatabase

__all__ = ["clean_nats"]

BASE = "/v1/projects/default"
SPEC = {"name": "digits", "command": ["python", "train.py"]}
LOGS = f"{BASE}/trainings/digits-1/logs"


@pytest.fixture
async def api(clean_nats: str, fresh_database: FreshDatabase, tmp_path: Path) -> AsyncIterator[Door]:
    environ = {"ELEARN_SLOW_READER_SECONDS": "0.3", "ELEARN_HEARTBEAT_SECONDS": "0.2"}
    async with door(clean_nats, await fresh_database(), tmp_path, environ) as running:
        yield running


def get(api: Door, path: str, **headers: str) -> "aiohttp.client._RequestContextManager":
    return api.client.get(api.url + path, headers={"Authorization": f"Bearer {ADMIN}", **headers})


def answered(operation: str, status: int) -> float:
    """How many requests the gateway has answered so."""
    labels = {"operation": operation, "method": "GET", "status": str(status)}
    return REGISTRY.get_sample_value("elearn_api_requests_total", labels) or 0.0


# -- logs -------------------------------------------------------------------------------------------


async def test_a_log_is_read_as_it_stands(api: Door) -> None:
    await api.ask("POST", f"{BASE}/trainings", json=SPEC)
    assert (await api.ask("GET", LOGS))[:2] == (200, b"")
    assert (await api.ask("GET", f"{LOGS}?attempt=2"))[0] == 404
    api.rooms.start("digits-1", "chief-0", "worker-0")
    api.rooms.write_log("chief-0", b"one\ntwo\nthree")
    api.rooms.write_log("worker-0", b"joined\n")
    assert (await api.ask("GET", f"{LOGS}?task=chief-0"))[1] == b"one\ntwo\nthree"
    assert (await api.ask("GET", f"{LOGS}?task=chief-0&tail=2"))[1] == b"two\nthree"
    assert (await api.ask("GET", f"{LOGS}?task=chief-0&tail=0"))[1] == b""
    _, text, headers = await api.ask("GET", LOGS)
    assert text == b"[chief-0] one\n[chief-0] two\n[chief-0] three\n[worker-0] joined\n"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert (await api.ask("GET", f"{LOGS}?task=ps-7"))[0] == 422
    assert (await api.ask("GET", f"{LOGS}?tail=-1"))[0] == 422
    assert (await api.ask("HEAD", LOGS))[0] == 200


async def test_a_log_is_followed_until_its_task_ends(api: Door) -> None:
    await api.ask("POST", f"{BASE}/trainings", json=SPEC)
    async with get(api, f"{LOGS}?task=chief-0&follow=true") as answer:
        api.rooms.start("digits-1", "chief-0", "worker-0")
        api.rooms.write_log("chief-0", b"one\n")
        assert await answer.content.readline() == b"one\n"
        api.rooms.write_log("chief-0", b"two\n")
        assert await answer.content.readline() == b"two\n"
        api.rooms.ended.add("chief-0")
        api.rooms.more_log.set()
        assert await answer.content.read() == b""


async def test_all_logs_are_followed_over_all_attempts(api: Door) -> None:
    await api.ask("POST", f"{BASE}/trainings", json=SPEC)
    api.rooms.start("digits-1", "chief-0", "worker-0")
    async with get(api, f"{LOGS}?follow=true") as answer:
        api.rooms.write_log("worker-0", b"half")
        api.rooms.write_log("chief-0", b"one\n")
        assert await answer.content.readline() == b"[chief-0] one\n"
        api.rooms.write_log("worker-0", b" a line\n")
        assert await answer.content.readline() == b"[worker-0] half a line\n"
        api.rooms.ended |= {"chief-0", "worker-0"}
        api.rooms.more_log.set()
        await until(lambda: asyncio.sleep(0, api.rooms.verbs()[-1]), lambda verb: verb == "scheduler.get")
        api.rooms.ended.clear()
        api.rooms.logs.clear()
        api.rooms.start("digits-1", "chief-0")
        api.rooms.write_log("chief-0", b"again\n")
        assert await answer.content.readline() == b"again\n"
        api.rooms.end("digits-1")
        assert await answer.content.read() == b""


async def test_a_reader_who_leaves_is_read_for_no_more(api: Door) -> None:
    await api.ask("POST", f"{BASE}/trainings", json=SPEC)
    api.rooms.start("digits-1", "chief-0")
    before = answered("readLogs", 499)
    async with get(api, f"{LOGS}?follow=true") as answer:
        api.rooms.write_log("chief-0", b"one\n")
        await answer.content.readline()

    await until(lambda: asyncio.sleep(0, answered("readLogs", 499)), lambda count: count > before)
    api.rooms.more_log.set()


async def test_a_followed_log_outlives_a_restart_of_the_scheduler(api: Door) -> None:
    await api.ask("POST", f"{BASE}/trainings", json=SPEC)
    api.rooms.start("digits-1", "chief-0")
    refused = 0

    async def away(_: object) -> Chunk:
        nonlocal refused
        refused += 1
        if refused == 2:
            del api.rooms.answers_instead["scheduler.read_log"]
        raise Unavailable("the scheduler service is away")

    async with get(api, f"{LOGS}?follow=true&task=chief-0") as answer:
        api.rooms.write_log("chief-0", b"one\n")
        assert await answer.content.readline() == b"one\n"
        api.rooms.answers_instead["scheduler.read_log"] = away
        api.rooms.write_log("chief-0", b"two\n")
        assert await answer.content.readline() == b"two\n"
        api.rooms.write_log("chief-0", b"three\n")
        assert await answer.content.readline() == b"three\n"
        assert refused == 2
        api.rooms.end("digits-1")
        assert await answer.content.read() == b""


# -- events -----------------------------------------------------------------------------------------


async def publish(api: Door, subject: str, body: dict[str, Any], nats_url: str) -> None:
    async with connected(nats_url) as connection:
        await connection.jetstream().publish(f"elearn.v1.{subject}", json.dumps(body).encode())


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    async with asyncio.timeout(10):
        while True:
            line = (await answer.content.readline()).decode()
            assert line, "the stream ended"
            if line == "\n" and "data" in fields:
                return {**fields, "data": json.loads(fields["data"])}
            name, colon, value = line.rstrip("\n").partition(": ")
            if colon and name:
                fields[name] = value


async def test_events_are_replayed_filtered_and_live(api: Door, clean_nats: str) -> None:
    for number in (1, 2):
        await publish(api, "data.arrived.default.digits", {"version": str(number)}, clean_nats)
    await publish(api, "data.arrived.other.digits", {"version": "3"}, clean_nats)
    subject = "subject=elearn.v1.data.>"
    async with get(api, f"{BASE}/events?since=0&{subject}") as answer:
        assert answer.content_type == "text/event-stream"
        first, second = await next_event(answer), await next_event(answer)
        assert [each["data"]["data"]["version"] for each in (first, second)] == ["1", "2"]
        assert first["data"]["subject"] == "elearn.v1.data.arrived.default.digits"
        assert first["id"] == str(first["data"]["sequence"])
        await publish(api, "data.arrived.default.digits", {"version": "4"}, clean_nats)
        assert (await next_event(answer))["data"]["data"]["version"] == "4"
    headers = {"Last-Event-ID": first["id"]}
    async with get(api, f"{BASE}/events?since=1h&{subject}", **headers) as answer:
        assert (await next_event(answer))["data"]["data"]["version"] == "2"
    async with get(api, f"{BASE}/events?since={second['data']['time']}&{subject}") as answer:
        assert (await next_event(answer))["data"]["data"]["version"] in ("2", "4")


async def test_a_replay_that_does_not_follow_ends(api: Door, clean_nats: str) -> None:
    async with connected(clean_nats) as connection:
        for project in ["default"] * 300 + ["other"]:
            await connection.jetstream().publish(f"elearn.v1.data.arrived.{project}.digits", b"{}")
    for query, expected in (
        ("follow=false&subject=elearn.v1.data.>", 300),
        ("follow=false&since=1h&subject=elearn.v1.data.arrived.default.digits", 300),
        ("follow=false&subject=elearn.v1.serving.>", 0),
    ):
        async with asyncio.timeout(10), get(api, f"{BASE}/events?{query}") as answer:
            body = await answer.read()
        assert body.count(b"\ndata: ") == expected


async def test_a_silent_stream_shows_that_it_lives(api: Door) -> None:
    async with get(api, f"{BASE}/events?subject=elearn.v1.training.failed.>") as answer:
        async with asyncio.timeout(5):
            while await answer.content.readline() != b": still here\n":
                pass


async def test_a_slow_reader_is_cut_off_with_a_last_word(api: Door, clean_nats: str) -> None:
    host, _, port = api.url.removeprefix("http://").partition(":")
    large = {"version": "x" * 100_000}
    async with connected(clean_nats) as connection:
        jetstream = connection.jetstream()
        for _ in range(120):
            await jetstream.publish("elearn.v1.data.arrived.default.digits", json.dumps(large).encode())
    before = answered("streamEvents", 200)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    request = f"GET {BASE}/events?since=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n\r\n"
    writer.write(request.encode())
    await reader.readline()

    await until(lambda: asyncio.sleep(0, answered("streamEvents", 200)), lambda count: count > before)
    async with asyncio.timeout(10):
        rest = await reader.read()
        while part := await reader.read(1 << 20):
            rest += part
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    assert b"event: error\ndata: {" in rest
    assert b"too slow" in rest[rest.rindex(b"event: error") :]
    assert rest.endswith(b"0\r\n\r\n")


# -- proxies ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def upstream(handler: Any) -> AsyncIterator[str]:
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    port = ports.pick()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_predictions_go_to_the_serving_and_its_errors_come_back_as_problems(api: Door) -> None:
    serving = f"{BASE}/servings/digits"

    async def model(request: web.Request) -> web.Response:
        if request.path == "/v1/models/digits/metadata":
            return web.json_response({"model_spec": {"name": "digits"}})
        if request.path != "/v1/models/digits:predict":
            return web.json_response({"error": "not here"}, status=501)
        body = await request.json()
        if "instances" not in body:
            return web.json_response({"error": "Missing 'inputs' or 'instances' key"}, status=400)
        return web.json_response({"predictions": body["instances"]})

    assert (await api.ask("POST", f"{serving}:predict", json={"instances": [1]}))[0] == 404
    await api.ask("POST", f"{BASE}/servings", json={"name": "digits", "model": "digits", "version": 1})
    status, problem, headers = await api.ask("POST", f"{serving}:predict", json={"instances": [1]})
    assert (status, "deploying" in problem["detail"], "Retry-After" in headers) == (503, True, True)
    async with upstream(model) as url:
        api.rooms.endpoint = Endpoint(grpc="127.0.0.1:1", rest=f"{url}/v1/models/digits")
        for body in ({"instances": [[1, 2]]}, {"instances": ["x" * 3_000_000]}):
            status, got, _ = await api.ask("POST", f"{serving}:predict", data=BytesIO(json.dumps(body).encode()))
            assert (status, got) == (200, {"predictions": body["instances"]})
        api.rooms.asked.clear()
        await api.ask("POST", f"{serving}:predict", json={"instances": [1]})
        assert api.rooms.asked == []
        status, problem, _ = await api.ask("POST", f"{serving}:predict", json={})
        assert (status, "Missing 'inputs'" in problem["detail"]) == (400, True)
        assert (await api.ask("POST", f"{serving}:classify", json={}))[0] == 501
        assert (await api.ask("GET", f"{serving}/metadata"))[1]["model_spec"]["name"] == "digits"
    assert (await api.ask("POST", f"{serving}:predict", json={"instances": [1]}))[0] == 503
    async with upstream(model) as url:
        api.rooms.endpoint = Endpoint(grpc="127.0.0.1:1", rest=f"{url}/v1/models/digits")
        assert (await api.ask("POST", f"{serving}:predict", json={"instances": [1]}))[0] == 200
    assert (await api.ask("GET", f"{serving}:predict"))[0] == 405


async def test_predictions_stay_in_the_cluster_where_there_is_a_way_within_it(api: Door) -> None:
    async def model(request: web.Request) -> web.Response:
        return web.json_response({"predictions": [request.path]})

    await api.ask("POST", f"{BASE}/servings", json={"name": "digits", "model": "digits", "version": 1})
    async with upstream(model) as url:
        outside = "http://digits.invalid/v1/models/digits"
        api.rooms.endpoint = Endpoint(grpc="digits.invalid:80", rest=outside, internal_rest=f"{url}/v1/models/digits")
        status, got, _ = await api.ask("POST", f"{BASE}/servings/digits:predict", json={"instances": [1]})
        assert (status, got) == (200, {"predictions": ["/v1/models/digits:predict"]})


async def test_a_serving_whose_name_is_not_known_here_is_told_with_what_to_do(api: Door) -> None:
    await api.ask("POST", f"{BASE}/servings", json={"name": "digits", "model": "digits", "version": 1})
    api.rooms.endpoint = Endpoint(grpc="digits.invalid:8500", rest="http://digits.invalid:8501/v1/models/digits")
    status, problem, _ = await api.ask("POST", f"{BASE}/servings/digits:predict", json={"instances": [1]})
    assert status == 503
    assert "answers at digits.invalid, a name that is not known" in problem["detail"]
    assert "ELEARN_KUBERNETES_SERVING_ACCESS" in problem["detail"]


async def test_a_board_is_behind_a_token_that_becomes_a_cookie(api: Door) -> None:
    seen: list[web.Request] = []

    async def board(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(text=f"board {request.path_qs}", headers={"Set-Cookie": "theirs=1"})

    prefix = f"{BASE}/trainings/digits-1/board"
    assert (await api.ask("GET", prefix + "/", token=None))[0] == 401
    assert (await api.ask("GET", prefix + "/?token=wrong", token=None))[0] == 401
    assert (await api.ask("GET", prefix + "/"))[0] == 404
    async with upstream(board) as url:
        api.rooms.board = url
        status, text, headers = await api.ask("GET", f"{prefix}/data/runs?tag=a%2Fb")
        assert (status, text.decode()) == (200, f"board {prefix}/data/runs?tag=a%2Fb")
        assert "Set-Cookie" not in headers
        assert "Authorization" not in seen[0].headers
        status, _, headers = await api.ask("GET", f"{prefix}/?token={ADMIN}&run=1", token=None, allow_redirects=False)
        assert (status, headers["Location"]) == (303, f"{prefix}/?run=1")
        cookie = headers["Set-Cookie"]
        for word in ("HttpOnly", "SameSite=Strict", f"Path={prefix}"):
            assert word in cookie
        shown = {"Cookie": cookie.partition(";")[0]}
        status, text, _ = await api.ask("GET", f"{prefix}/?run=1", token=None, headers=shown)
        assert (status, text.decode()) == (200, f"board {prefix}/?run=1")
        assert "Cookie" not in seen[-1].headers
        other = f"/v1/projects/{DEFAULT_PROJECT}/trainings"
        assert (await api.ask("GET", other, token=None, headers=shown))[0] == 401
        status, _, headers = await api.ask("GET", prefix, allow_redirects=False)
        assert (status, headers["Location"]) == (308, prefix + "/")
    assert (await api.ask("GET", prefix + "/"))[0] == 503
