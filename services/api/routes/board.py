"""``…/trainings/{name}/board/``: a training's TensorBoard, behind the gateway's tokens.

A browser can't send a token with every request of a page, so ``?token=…`` is exchanged once for a cookie
that only this board's paths get to see, that no script can read and that no other site can make use of.
"""

from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

import aiohttp
import structlog
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from services.api.bodies import body_parts
from services.api.errors import BadToken
from services.api.middleware import PRINCIPAL
from services.api.model import refusal
from services.api.routes.trainings import BASE
from services.api.table import Call, NoQuery, Route
from shared.contracts import training
from shared.contracts.training import OpenBoard
from shared.errors import Forbidden, NotFound, Unavailable

_log = structlog.get_logger(__name__)

COOKIE: Final = "elearn_board"
_OPEN_SECONDS: Final = 45.0
_COOKIE_SECONDS: Final = 12 * 3600
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "host",
        "expect",
    }
)
_OURS: Final = frozenset({"authorization", "cookie", "traceparent", "idempotency-key"})
_NOT_THEIRS: Final = frozenset({"set-cookie", "server"})


async def _proxy(call: Call[None, NoQuery]) -> web.StreamResponse:
    request, project, name = call.request, call.path["project"], call.path["name"]
    prefix = f"/v1/projects/{project}/trainings/{name}/board"
    query = parse_qsl(request.query_string, keep_blank_values=True)
    shown = next((value for key, value in query if key == "token"), None)
    await _admit(call, project, shown)
    rest = urlencode([pair for pair in query if pair[0] != "token"])
    if shown is not None and request.method == "GET":
        answer = web.Response(status=303, headers={"Location": request.path + (f"?{rest}" if rest else "")})
        answer.set_cookie(
            COOKIE,
            shown,
            path=prefix,
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=request.secure,
        )
        return answer
    if request.path == prefix:
        return web.Response(status=308, headers={"Location": f"{prefix}/" + (f"?{rest}" if rest else "")})
    board = await call.gateway.boards.get(
        prefix, lambda _: _open(call, OpenBoard(project=project, name=name, path_prefix=prefix))
    )
    if board is None:
        raise NotFound(f"training {name!r} has no TensorBoard")
    path = request.rel_url.raw_path + (f"?{rest}" if rest else "")
    return await _forward(call, URL(board.rstrip("/") + path, encoded=True), prefix)


async def _open(call: Call[None, NoQuery], request: OpenBoard) -> str:
    return (await call.gateway.bus.call(training.OPEN_BOARD, request, timeout=_OPEN_SECONDS)).url


async def _admit(call: Call[None, NoQuery], project: str, shown: str | None) -> None:
    """Let in who shows a token: in the header, in ``?token=``, or in the cookie that it was exchanged for."""
    access, request = call.gateway.access, call.request
    header = request.headers.get("Authorization")
    if header is None:
        secret = shown if shown is not None else request.cookies.get(COOKIE)
        if secret is None:
            raise BadToken(f"show a token: add ?token=<token> to {quote(request.path)}, once")
        header = f"Bearer {secret}"
    principal = await access.principal(header)
    request[PRINCIPAL] = principal
    reason = refusal(principal, "read", "project", project)
    if reason is not None:
        raise Forbidden(reason)
    await access.require_project(project, changing=False)


async def _forward(call: Call[None, NoQuery], url: URL, prefix: str) -> web.StreamResponse:
    request, gateway = call.request, call.gateway
    headers = CIMultiDict(
        (key, value)
        for key, value in request.headers.items()
        if key.lower() not in _HOP_BY_HOP and key.lower() not in _OURS
    )
    data = body_parts(request, gateway.settings.json_limit) if request.can_read_body else None
    try:
        async with gateway.client.request(
            request.method, url, headers=headers, data=data, allow_redirects=False, auto_decompress=False
        ) as upstream:
            response = web.StreamResponse(status=upstream.status)
            for key, value in upstream.headers.items():
                if key.lower() not in _HOP_BY_HOP and key.lower() not in _NOT_THEIRS:
                    response.headers.add(key, value)
            # TensorBoard brings a policy of its own; without one, a page may do what pages do.
            response.headers.setdefault("Content-Security-Policy", "frame-ancestors 'self'")
            await response.prepare(request)
            if not call.is_head:
                async for part in upstream.content.iter_any():
                    await response.write(part)
            await response.write_eof()
            return response
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        gateway.boards.forget(lambda key, _: key == prefix)
        _log.info("board is away", path=prefix, error=repr(error))
        raise Unavailable("this training's TensorBoard is away or still starting; try again") from error


def _route(method: str, path: str, operation: str) -> Route[None, NoQuery]:
    return Route(
        method=method,
        path=path,
        operation=operation,
        noun="training",
        summary="The training's TensorBoard; show a token as ?token=… once, in a browser",
        handle=_proxy,
        scope=None,
        raw_query=True,
        gives="text/html",
        statuses=(200, 303, 308),
        problems=(401, 403, 404),
        audited=False,
        verb=training.OPEN_BOARD,
    )


ROUTES = (
    _route("GET", BASE + "/{name}/board", "openBoard"),
    _route("GET", BASE + "/{name}/board/{path}", "getBoard"),
    _route("POST", BASE + "/{name}/board/{path}", "postBoard"),
)
