"""TensorFlow Serving's REST API, beside health and metrics."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from google.protobuf import json_format

from services.serving.server import rest_json
from services.serving.server.errors import Code, InvalidArgument, NotFound, ServeError, Unimplemented
from services.serving.server.metrics import Metrics
from services.serving.server.model_service import status_response
from services.serving.server.predict import Predictor
from services.serving.server.prediction_service import signature_map
from services.serving.server.versions import Versions

log = structlog.get_logger(__name__)

_LARGE: Final = 256 * 1024
"""Bodies from so many bytes on are read in a thread, so that they do not hold up the others."""

_MODEL: Final = re.compile(
    r"/v1/models/(?P<model>[^/:]+)"
    r"(?:/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(?:(?P<metadata>/metadata)|:(?P<verb>\w+))?"
)


class RestApi:
    """The aiohttp application.

    Args:
        ready: True while requests are welcome.
    """

    def __init__(
        self,
        versions: Versions,
        predictor: Predictor,
        metrics: Metrics,
        *,
        ready: Callable[[], bool],
        inside: Callable[[], int],
        max_body_bytes: int,
    ) -> None:
        self._versions = versions
        self._predictor = predictor
        self._metrics = metrics
        self._ready = ready
        self._inside = inside
        self.application = web.Application(client_max_size=max_body_bytes, middlewares=[self._part])
        self.application.router.add_get("/healthz", self._health)
        self.application.router.add_get("/metrics", self._metrics_page)
        self.application.router.add_get("/monitoring/prometheus/metrics", self._metrics_page)
        self.application.router.add_route("*", "/{path:.*}", self._model)

    @web.middleware
    async def _part(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """While draining, every answer asks its client to open its next connection to another replica."""
        response = await handler(request)
        if not self._ready():
            response.force_close()
        return response

    async def _health(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.json_response({"status": "serving"})
        return web.json_response({"status": "draining"}, status=503)

    async def _metrics_page(self, _: web.Request) -> web.Response:
        self._metrics.inside.set(self._inside())
        return web.Response(body=self._metrics.text(), headers={"Content-Type": self._metrics.content_type})

    async def _model(self, request: web.Request) -> web.Response:
        match = _MODEL.fullmatch(request.path)
        verb = match["verb"] if match else None
        method = verb or ("metadata" if match and match["metadata"] else "status")
        if match is None or request.method != ("POST" if verb else "GET"):
            return _error(InvalidArgument(f"Malformed request: {request.method} {request.path}"))
        target: dict[str, Any] = {
            "version": int(match["version"]) if match["version"] else None,
            "label": match["label"],
        }
        handlers: dict[str, Callable[[], Awaitable[web.Response]]] = {
            "predict": lambda: self._predict(request, match["model"], target),
            "metadata": lambda: self._describe(match["model"], target),
            "status": lambda: self._status(match["model"], target),
        }
        handler = handlers.get(method, lambda: _unknown(method))
        try:
            with self._metrics.request("rest", method if method in handlers else "other"):
                return await handler()
        except ServeError as error:
            return _error(error)
        except web.HTTPRequestEntityTooLarge as error:
            return _error(InvalidArgument(f"the request is too large: {error.text}"), status=413)
        except web.HTTPException:
            raise
        except Exception:
            log.exception("request failed", method=method)
            return _error(ServeError("internal error; the server's log says more", Code.INTERNAL))

    async def _predict(self, request: web.Request, model: str, target: dict[str, Any]) -> web.Response:
        raw = await request.read()
        with self._versions.use(model, **target) as version:
            body = await _off_loop(len(raw), rest_json.parse, raw)
            signature = version.loaded.program(body.signature).signature
            inputs = await _off_loop(len(raw), rest_json.inputs_of, body, signature)
            prediction = await self._predictor.predict(version, signature, inputs)
        size = sum(array.size * 8 for array in prediction.outputs.values())
        return _json(await _off_loop(size, rest_json.answer, body.layout, prediction.outputs))

    async def _status(self, model: str, target: dict[str, Any]) -> web.Response:
        return _json(_message(status_response(self._versions.statuses(model, **target))))

    async def _describe(self, model: str, target: dict[str, Any]) -> web.Response:
        version = self._versions.find(model, **target)
        signatures = _message(signature_map(version.loaded.signature_defs))
        # By hand, as TensorFlow Serving does: as an Any it would carry a type that no client expects.
        spec = f'{{"name": "{model}", "signature_name": "", "version": "{version.number}"}}'
        return _json(f'{{"model_spec": {spec}, "metadata": {{"signature_def": {signatures.decode()}}}}}'.encode())


async def _unknown(method: str) -> web.Response:
    if method in ("classify", "regress"):
        raise Unimplemented(f"{method} on lists of tf.Example is not supported by this server; use predict")
    raise NotFound(f"there is no method {method!r}; use predict")


async def _off_loop(size: int, work: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(work, *args) if size >= _LARGE else work(*args)


def _message(message: Any) -> bytes:
    text: str = json_format.MessageToJson(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )
    return text.encode()


def _json(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, content_type="application/json")


def _error(error: ServeError, status: int | None = None) -> web.Response:
    response = web.json_response({"error": error.message}, status=status or error.code.http)
    if error.code is Code.RESOURCE_EXHAUSTED:
        response.headers["Retry-After"] = "1"
    return response
