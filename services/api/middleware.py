"""What surrounds every request: its trace, its errors as problems, its headers, its log line."""

import asyncio
import os
from typing import Final
from urllib.parse import quote

import structlog
from aiohttp import ClientPayloadError, web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestPayloadError
from prometheus_client import Counter, Histogram

from services.api.audit import AuditLog
from services.api.errors import BadToken, MethodNotAllowed, RangeNotSatisfiable
from services.api.model import AuditEntry, Principal
from services.api.table import OPEN, AnyRoute, Route
from shared import context
from shared.clock import now
from shared.codec import encode_json
from shared.context import Cause
from shared.errors import ElearnError, Internal, Malformed, NotFound, TooLarge

_log = structlog.get_logger(__name__)

PROBLEM_TYPE: Final = "application/problem+json"
ROUTE: Final = web.RequestKey("route", Route)
PRINCIPAL: Final = web.RequestKey("principal", Principal)
UNCHANGED: Final = web.RequestKey("unchanged", bool)
"""Set by a handler whose method usually changes something, when this request did not (a dry run)."""
_TRACE: Final = web.RequestKey("traceparent", str)
BEGUN: Final = web.RequestKey("begun", web.StreamResponse)
"""The answer, once its head is out."""

_GONE_AWAY: Final = 499
_SECURITY: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}

_requests = Counter("elearn_api_requests", "Answered requests", ["operation", "method", "status"])
_seconds = Histogram(
    "elearn_api_request_seconds",
    "Time from a request's head to the end of its answer",
    ["operation"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)


async def prepare(request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the headers that all have, just before it begins."""
    request[BEGUN] = response
    for name, value in _SECURITY.items():
        response.headers.setdefault(name, value)
    if _TRACE in request:
        response.headers["traceparent"] = request[_TRACE]
    response.headers["Server"] = "elearn"


def furniture(audit: AuditLog) -> Middleware:
    """The one middleware of the gateway."""

    @web.middleware
    async def serve(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = asyncio.get_running_loop().time()
        trace = _span_of(request)
        request[_TRACE] = trace
        status = _GONE_AWAY
        with context.caused_by(Cause(traceparent=trace)):
            try:
                response = await _guarded(request, handler)
                status = response.status
                return response
            finally:
                _note(request, status, asyncio.get_running_loop().time() - began, audit)

    return serve


async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or the problem that its error is."""
    try:
        return await handler(request)
    except web.HTTPException as answer:
        if answer.status < 400:
            raise
        error: ElearnError = _from_http(request, answer)
    except ElearnError as raised:
        error = raised
    except (RequestPayloadError, ClientPayloadError, ConnectionError) as raised:
        words = " ".join(str(raised).split())[:200]
        error = Malformed(f"the body can't be read to its end: {words or type(raised).__name__}")
    except Exception:  # noqa: BLE001 - the last resort: the caller is told, the log keeps the story
        _log.exception("request failed", method=request.method, path=request.path)
        error = Internal(
            f"the gateway failed on this request; its log says why, under trace {request[_TRACE].split('-')[1]}"
        )
    if BEGUN in request:
        # Half of an answer is out already: all that is left is to make plain that it is not whole.
        _log.warning("answer broken off", path=request.path, error=error.detail)
        if request.transport is not None:
            request.transport.abort()
        return request[BEGUN]
    return problem_response(error, shown="Authorization" in request.headers)


def problem_response(error: ElearnError, *, shown: bool = False) -> web.Response:
    """An error as its answer.

    Args:
        shown: the request showed a token, so a 401 means that it is not good.
    """
    problem = error.problem()
    headers = {}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if problem.status == BadToken.status:
        headers["WWW-Authenticate"] = 'Bearer realm="elearn"' + (', error="invalid_token"' if shown else "")
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size}"
    return web.Response(body=encode_json(problem), status=problem.status, headers=headers, content_type=PROBLEM_TYPE)


def _from_http(request: web.Request, answer: web.HTTPException) -> ElearnError:
    path = quote(request.path[:200])
    if isinstance(answer, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(request.method, path, answer.allowed_methods)
    if isinstance(answer, web.HTTPNotFound):
        return NotFound(f"there is nothing at {path}; what there is stands in /openapi.json")
    if isinstance(answer, web.HTTPRequestEntityTooLarge):
        return TooLarge("the body is too large")
    return Malformed(f"the request can't be answered: {answer.reason}")


def _span_of(request: web.Request) -> str:
    """A span of our own in the caller's trace, or in a new one."""
    version, trace, _, flags = context.continued_trace(request.headers.get("traceparent")).split("-")
    return f"{version}-{trace}-{os.urandom(8).hex()}-{flags}"


def _note(request: web.Request, status: int, seconds: float, audit: AuditLog) -> None:
    route: AnyRoute | None = request.get(ROUTE)
    principal = request.get(PRINCIPAL) or OPEN
    operation = route.operation if route is not None else "none"
    _requests.labels(operation, request.method, str(status)).inc()
    _seconds.labels(operation).observe(seconds)
    note = _log.info if status >= 400 or (route is not None and route.changes) else _log.debug
    note(
        "request",
        method=request.method,
        path=request.path,  # never the query: a browser's first visit to a board carries its token there
        status=status,
        ms=round(seconds * 1000, 1),
        by=principal.name,
    )
    if route is not None and route.changes and UNCHANGED not in request:
        audit.record(
            AuditEntry(
                at=now(),
                actor=principal.name,
                method=request.method,
                path=request.path[:1000],
                project=request.match_info.get("project", "")[:100],
                status=status,
                trace=request[_TRACE].split("-")[1],
            )
        )
