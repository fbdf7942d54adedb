"""``/healthz``, ``/readyz`` and ``/metrics`` of a service, for whoever keeps it alive."""

from collections.abc import Awaitable, Callable, Mapping

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from shared.errors import ElearnError
from shared.listening import addresses

_log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[None]]


class HealthServer:
    """A small HTTP server beside the service.

    Args:
        host: see :func:`shared.listening.addresses`.
        checks: what must hold for the service to be ready, by name; a check raises an
            :class:`~shared.errors.ElearnError` that says what is away.
    """

    def __init__(self, host: str, port: int, checks: Mapping[str, Check]) -> None:
        self._host = host
        self._port = port
        self._checks = checks
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to answer; does nothing where the port is 0."""
        if not self._port:
            return
        app = web.Application()
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        for address in addresses(self._host):
            await web.TCPSite(self._runner, address, self._port, reuse_address=True).start()

    async def stop(self) -> None:
        """Stop answering."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _alive(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _ready(self, _: web.Request) -> web.Response:
        missing = await failing(self._checks)
        return web.json_response(
            {"status": "waiting" if missing else "ok", "waiting_for": missing}, status=503 if missing else 200
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def failing(checks: Mapping[str, Check]) -> dict[str, str]:
    """The checks that do not hold, with what they say."""
    missing = {}
    for name, check in checks.items():
        try:
            await check()
        except ElearnError as error:
            missing[name] = error.detail
        except TimeoutError:
            missing[name] = "no answer in time"
    return missing
