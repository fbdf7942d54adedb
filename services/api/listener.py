"""The listening socket, and answers to what is not even HTTP: problems, like every other refusal."""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from services.api.middleware import problem_response
from shared.errors import Conflict, ElearnError, Internal, Malformed
from shared.listening import addresses

_log = structlog.get_logger(__name__)

_END_SECONDS: Final = 3.0


class _OneLine(logging.Filter):
    """aiohttp's own words about broken connections, without their traces: whatever matters was logged before."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            record.msg, record.args = f"{record.getMessage()}: {' '.join(repr(error).split())[:300]}", ()
        record.exc_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True


_logger: Final = logging.getLogger("services.api.http")
_logger.addFilter(_OneLine())


class _Protocol(web.RequestHandler):
    """HTTP on one connection."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that can't be read, or whose handler failed beyond all our care."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        words = " ".join((message or "").split())[:300]
        error: ElearnError = Malformed(f"this is not a request: {words}")
        if status >= 500:
            _logger.error("request failed", exc_info=exc)
            error = Internal("the gateway failed on this request; its log says why")
        response = problem_response(error)
        response.headers["Server"] = "elearn"
        response.force_close()
        return response


async def listen(app: web.Application, host: str, port: int) -> Callable[[], Awaitable[None]]:
    """Begin to answer; answers how to stop.

    Args:
        host: see :func:`shared.listening.addresses`.

    Raises:
        Conflict: the address is taken, or not one of this machine.
    """
    loop = asyncio.get_running_loop()
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=_END_SECONDS, logger=_logger
    )
    await runner.setup()
    server = runner.server
    if server is None:
        raise RuntimeError("set up without a server")
    try:
        listener = await loop.create_server(
            lambda: _Protocol(server, loop=loop, access_log=None, logger=_logger),  # type: ignore[arg-type]
            addresses(host),
            port,
            reuse_address=True,
        )
    except OSError as error:
        await runner.cleanup()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} of {host} is taken by another program; "
                "choose another one with ELEARN_LISTEN (elearn up --port)"
            ) from error
        raise Conflict(f"can't listen on {host}:{port}: {error.strerror or error}") from error
    _log.info("listening", host=host, port=port)

    async def stop() -> None:
        listener.close()
        await runner.cleanup()

    return stop
