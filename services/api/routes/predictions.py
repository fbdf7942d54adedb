"""``…/servings/{name}:predict``: predictions through the gateway, in TensorFlow Serving's REST form."""

from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import msgspec
import structlog
from aiohttp import web

from services.api.bodies import body_parts, read_body
from services.api.middleware import BEGUN
from services.api.routes.servings import BASE
from services.api.table import Call, NoQuery, Route
from shared.contracts import serving
from shared.contracts.common import Named
from shared.errors import ElearnError, Internal, Malformed, NotFound, TooLarge, Unavailable, Unsupported

_log = structlog.get_logger(__name__)

_HELD: Final = 1024 * 1024
"""Bodies up to this size are held, so that they can be sent again where the server has just moved."""
_LONGEST_ERROR: Final = 64 * 1024
_CONNECT_SECONDS: Final = 2.0


class _ServerError(msgspec.Struct, frozen=True, kw_only=True):
    """How TensorFlow Serving says what is wrong."""

    error: str


async def _predict(call: Call[None, NoQuery]) -> web.StreamResponse:
    return await _proxy(call, "POST", ":predict")


async def _classify(call: Call[None, NoQuery]) -> web.StreamResponse:
    return await _proxy(call, "POST", ":classify")


async def _regress(call: Call[None, NoQuery]) -> web.StreamResponse:
    return await _proxy(call, "POST", ":regress")


async def _metadata(call: Call[None, NoQuery]) -> web.StreamResponse:
    return await _proxy(call, "GET", "/metadata")


async def _proxy(call: Call[None, NoQuery], method: str, suffix: str) -> web.StreamResponse:
    request, limit = call.request, call.gateway.settings.predict_limit
    if request.content_length is not None and request.content_length <= _HELD:
        body = await read_body(request, limit)
        try:
            return await _ask(call, method, suffix, body)
        except aiohttp.ClientConnectionError:
            if BEGUN in request:
                raise
            _forget(call)  # it may have moved: look again, once
            return await _ask_last(call, method, suffix, body)
    data = body_parts(request, limit) if method == "POST" else None
    return await _ask_last(call, method, suffix, data)


async def _ask_last(
    call: Call[None, NoQuery], method: str, suffix: str, data: bytes | AsyncIterator[bytes] | None
) -> web.StreamResponse:
    try:
        return await _ask(call, method, suffix, data)
    except aiohttp.ClientConnectionError as error:
        _forget(call)
        _log.info("serving is away", serving=call.name, error=repr(error))
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            words = f"serving {call.name!r} answers at {error.host}, a name that is not known where the gateway runs"
            advice = "outside the cluster set ELEARN_KUBERNETES_SERVING_ACCESS to forward"
            raise Unavailable(f"{words}; {advice}", retry=30) from error
        raise Unavailable(f"serving {call.name!r} does not answer now; try again", retry=1) from error


async def _ask(
    call: Call[None, NoQuery], method: str, suffix: str, data: bytes | AsyncIterator[bytes] | None
) -> web.StreamResponse:
    gateway = call.gateway
    base = await gateway.endpoints.get((call.project, call.name), lambda _: _endpoint(call))
    if base is None:
        raise NotFound(f"serving {call.name!r} has no endpoint")
    seconds = gateway.settings.predict_seconds
    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
    headers = {"Content-Type": "application/json"} if data is not None else {}
    try:
        async with gateway.client.request(
            method, base + suffix, data=data, headers=headers, timeout=timeout, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                raise _error(call.name, answer.status, await answer.content.read(_LONGEST_ERROR))
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            response.content_length = answer.content_length
            await response.prepare(call.request)
            if not call.is_head:
                async for part in answer.content.iter_any():
                    await response.write(part)
            await response.write_eof()
            return response
    except aiohttp.ServerTimeoutError as error:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            raise
        raise _slow(call.name, seconds) from error
    except TimeoutError as error:
        raise _slow(call.name, seconds) from error


def _slow(name: str, seconds: float) -> Unavailable:
    return Unavailable(f"serving {name!r} did not answer within {seconds:g} s; try again, or add replicas")


async def _endpoint(call: Call[None, NoQuery]) -> str:
    found = await call.gateway.bus.call(serving.GET, Named(project=call.project, name=call.name))
    if found.endpoint is None:
        because = f": {found.reason}" if found.reason else ""
        raise Unavailable(f"serving {found.name!r} is {found.state} and has no endpoint yet{because}")
    # What clients outside the cluster are told may lead out of it and back, past what the gateway may reach.
    return (found.endpoint.internal_rest or found.endpoint.rest).rstrip("/")


def _forget(call: Call[None, NoQuery]) -> None:
    call.gateway.endpoints.forget(lambda key, _: key == (call.project, call.name))


def _error(name: str, status: int, body: bytes) -> ElearnError:
    """What the model server said, as a problem."""
    try:
        words = msgspec.json.decode(body, type=_ServerError).error
    except msgspec.MsgspecError:
        words = body.decode(errors="replace").strip() or f"status {status}"
    detail = f"serving {name!r}: {words[:2000]}"
    if status == 404:
        return NotFound(detail)
    if status == 413:
        return TooLarge(detail)
    if status in (429, 502, 503, 504):
        return Unavailable(detail, retry=1)
    if status == 501:
        return Unsupported(detail)
    if status >= 500:
        return Internal(detail)
    return Malformed(detail)


_PREDICTION: Final = {"instances": [[0.0, 0.5, 1.0]]}

ROUTES = (
    Route(
        method="POST",
        path=BASE + "/{name}:predict",
        operation="predict",
        noun="serving",
        summary="Predict; body and answer are those of TensorFlow Serving's REST API",
        handle=_predict,
        scope="read",
        audited=False,
        takes="application/json",
        gives="application/json",
        problems=(404,),
        verb=serving.GET,
        example=_PREDICTION,
    ),
    Route(
        method="POST",
        path=BASE + "/{name}:classify",
        operation="classify",
        noun="serving",
        summary="Classify, where the model has such a signature and its server the method",
        handle=_classify,
        scope="read",
        audited=False,
        takes="application/json",
        gives="application/json",
        problems=(404, 501),
        verb=serving.GET,
        example={"examples": [{"x": 0.5}]},
    ),
    Route(
        method="POST",
        path=BASE + "/{name}:regress",
        operation="regress",
        noun="serving",
        summary="Regress, where the model has such a signature and its server the method",
        handle=_regress,
        scope="read",
        audited=False,
        takes="application/json",
        gives="application/json",
        problems=(404, 501),
        verb=serving.GET,
        example={"examples": [{"x": 0.5}]},
    ),
    Route(
        method="GET",
        path=BASE + "/{name}/metadata",
        operation="servingMetadata",
        noun="serving",
        summary="The signatures of the version that answers, as TensorFlow Serving tells them",
        handle=_metadata,
        scope="read",
        gives="application/json",
        problems=(404,),
        verb=serving.GET,
    ),
)
