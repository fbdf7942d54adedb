"""From the table of routes to an HTTP application: checks, problems, headers, logs, for all routes alike."""

import asyncio
import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler as AiohttpHandler

from services.api.access import Access, Memory
from services.api.audit import AuditLog
from services.api.bodies import read_body
from services.api.errors import UnknownProject
from services.api.middleware import PRINCIPAL, ROUTE, furniture, prepare
from services.api.model import Principal, refusal
from services.api.parameters import check_path, decode_query, router_path
from services.api.settings import Settings
from services.api.table import OPEN, Answer, AnyRoute, Call
from shared import context
from shared.bus import Bus
from shared.codec import decode_json, encode_json
from shared.context import Cause
from shared.contracts.common import NAME_PATTERN
from shared.errors import Forbidden, Invalid
from shared.health import Check
from shared.outbox import Outbox
from shared.postgres import Database

_KEY: Final = re.compile(r"[\x21-\x7e]{1,200}")
_MOST_WAITS: Final = 48
_BOARD_SECONDS: Final = 10.0
_ENDPOINT_SECONDS: Final = 2.0
_ENDPOINT_GRACE: Final = 300.0


class Gateway:
    """What handlers work with, and the application that leads to them.

    Attributes:
        streams: requests whose answer goes on for long; ended at once when the service stops.
        boards: base URLs of open TensorBoards, by path prefix.
        endpoints: REST base URLs of servings, by project and name.
        event_streams: how many event streams are open.
        waits: how many requests to rooms may wait for something to happen; rooms answer 128 at a time.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        bus: Bus,
        database: Database,
        outbox: Outbox,
        access: Access,
        audit: AuditLog,
        client: aiohttp.ClientSession,
        checks: dict[str, Check],
        documents: dict[str, bytes],
    ) -> None:
        self.settings = settings
        self.bus = bus
        self.database = database
        self.outbox = outbox
        self.access = access
        self.audit = audit
        self.client = client
        self.checks = checks
        self.documents = documents
        self.streams: set[asyncio.Task[object]] = set()
        self.event_streams = 0
        self.boards: Memory[str, str] = Memory(_BOARD_SECONDS, _BOARD_SECONDS)
        self.endpoints: Memory[tuple[str, str], str] = Memory(_ENDPOINT_SECONDS, _ENDPOINT_GRACE)
        self.waits = asyncio.Semaphore(_MOST_WAITS)

    def application(self, routes: Iterable[AnyRoute]) -> web.Application:
        """The application that serves a table of routes."""
        app = web.Application(middlewares=[furniture(self.audit)])
        app.on_response_prepare.append(prepare)
        app.on_shutdown.append(self._end_streams)
        for route in routes:
            methods = ("GET", "HEAD") if route.method == "GET" else (route.method,)
            for method in methods:
                app.router.add_route(
                    method, router_path(route.path), self._handler(route), expect_handler=_say_continue
                )
        return app

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Mark the request at hand as one whose answer goes on for long."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a request's own task streams its answer")
        self.streams.add(task)
        try:
            yield
        finally:
            self.streams.discard(task)

    async def _end_streams(self, _: web.Application) -> None:
        for task in tuple(self.streams):
            task.cancel()

    def _handler(self, route: AnyRoute) -> AiohttpHandler:
        async def handle(request: web.Request) -> web.StreamResponse:
            request[ROUTE] = route
            principal = OPEN
            if route.scope is not None:
                principal = await self.access.principal(request.headers.get("Authorization"))
                request[PRINCIPAL] = principal
            return await self._answer(route, request, principal)

        return handle

    async def _answer(self, route: AnyRoute, request: web.Request, principal: Principal) -> web.StreamResponse:
        path = dict(request.match_info)
        project = path.get("project", "")
        if route.scope is not None:
            reason = refusal(principal, route.scope, route.reach, project)
            if reason is not None:
                raise Forbidden(reason)
        if "project" in path and not re.fullmatch(NAME_PATTERN, project):
            raise UnknownProject(project)
        if project and route.reach == "project":
            await self.access.require_project(project, changing=route.changes and route.method != "DELETE")
        check_path({key: value for key, value in path.items() if key != "project"}, route.new, route.noun)
        query = decode_query(route.query, () if route.raw_query else request.query.items())
        body: object = None
        if route.body is not None:
            raw = await read_body(request, self.settings.json_limit)
            body = decode_json(route.body, raw if raw.strip() or not route.optional else b"{}")
        with context.caused_by(_cause(request, principal, route)):
            answer = await route.handle(
                Call(
                    gateway=self,
                    request=request,
                    principal=principal,
                    project=project,
                    path=path,
                    query=query,
                    body=body,
                )
            )
        return _response(answer) if isinstance(answer, Answer) else answer


def _cause(request: web.Request, principal: Principal, route: AnyRoute) -> Cause:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise Invalid.field("Idempotency-Key", "must be 1 to 200 printable ASCII characters without spaces")
    return Cause(
        actor=principal.name,
        traceparent=context.current().traceparent,
        idempotency_key=key if route.changes else None,
    )


def _response(answer: Answer) -> web.Response:
    headers = dict(answer.headers)
    if answer.location is not None:
        headers["Location"] = answer.location
    if answer.body is None:
        return web.Response(status=answer.status, headers=headers)
    return web.Response(
        body=encode_json(answer.body),
        status=answer.status,
        headers=headers,
        content_type="application/json",
    )


async def _say_continue(request: web.Request) -> None:
    """Ask for the body of a request that waits for leave to send it."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # as aiohttp does: this is not yet the answer
