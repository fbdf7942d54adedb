"""Hands code to the pods of attempts that hold compute; every replica of the scheduler does.

``GET /code/{project}/{digest}?training=…&attempt=…&token=…``. Who has no valid token learns nothing from an answer. The
token is in the URL, so there is no log of requests.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from services.scheduler.cloud.kubernetes.code import CodeSource
from services.scheduler.cloud.kubernetes.code_tokens import Claim, CodeTokens
from services.scheduler.errors import NoSuchCode
from shared.errors import ElearnError
from shared.listening import addresses

_log = structlog.get_logger(__name__)

_AT_ONCE: Final = 32
"""Downloads, each of which holds a part in memory; others wait."""
_READING: Final = 2
"""Parts that are read from the database at a time, which has other work."""
_WAITING: Final = 256
_WAIT_SECONDS: Final = 30.0
_WRITE_SECONDS: Final = 60.0
_DOWNLOAD_SECONDS: Final = 600.0
_RETRY_AFTER: Final = "2"
_NOT_ALLOWED: Final = "this token is not, or no longer, allowed to fetch this code"

IsHeld = Callable[[str, str, str, int], Awaitable[bool]]
"""Of project, digest, training, attempt: whether that is its training's current one, holds compute, has this code."""


class CodeServer:
    """The server.

    Args:
        is_held: looks an attempt up.
        host, port: where it listens; see :func:`shared.listening.addresses`.
        at_once: downloads at a time.
        waiting: requests that may wait for their turn; beyond, they are told to come again.
    """

    def __init__(
        self,
        source: CodeSource,
        tokens: CodeTokens,
        is_held: IsHeld,
        *,
        host: str,
        port: int,
        at_once: int = _AT_ONCE,
        waiting: int = _WAITING,
    ) -> None:
        self._source = source
        self._tokens = tokens
        self._is_held = is_held
        self._host = host
        self._port = port
        self._places = waiting + at_once
        self._turn = asyncio.Semaphore(at_once)
        self._reading = asyncio.Semaphore(_READING)

    def application(self) -> web.Application:
        """The server's routes."""
        app = web.Application(client_max_size=1024)
        app.router.add_get("/healthz", self._healthy, allow_head=False)
        app.router.add_get("/code/{project}/{digest}", self._send, allow_head=False)
        return app

    async def run(self) -> None:
        """Serve for ever."""
        runner = web.AppRunner(self.application(), access_log=None, handle_signals=False, shutdown_timeout=5)
        await runner.setup()
        try:
            for address in addresses(self._host):
                await web.TCPSite(runner, address, self._port, reuse_address=True).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _send(self, request: web.Request) -> web.StreamResponse:
        try:
            async with self._admitted():
                return await self._answer(request)
        except _Busy:
            return _later("too many pods ask for code at this moment")
        except NoSuchCode as error:
            return web.Response(status=404, text=error.detail)
        except ElearnError as error:
            return _later(error.detail)

    @contextlib.asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """Take a turn among the downloads."""
        if not self._places:
            raise _Busy
        self._places -= 1
        try:
            try:
                async with asyncio.timeout(_WAIT_SECONDS):
                    await self._turn.acquire()
            except TimeoutError:
                raise _Busy from None
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places += 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        claim = _claimed(request)
        if claim is None or not await self._tokens.is_valid(claim, request.query.get("token", "")):
            return web.Response(status=403, text=_NOT_ALLOWED)
        if not await self._is_held(claim.project, claim.digest, claim.training, claim.attempt):
            return web.Response(status=403, text=_NOT_ALLOWED)
        size = await self._source.size(claim.project, claim.digest)
        answer = web.StreamResponse(headers={"Content-Type": "application/octet-stream", "Content-Length": str(size)})
        await answer.prepare(request)
        try:
            async with asyncio.timeout(_DOWNLOAD_SECONDS):
                await self._stream(claim, answer)
        except (ConnectionError, TimeoutError) as error:
            _log.info("a pod broke off", training=claim.training, project=claim.project, error=repr(error))
            _cut(request)
        except ElearnError as error:
            # Too late for another status: the pod sees that bytes are missing, and asks again.
            _log.warning("code was not sent whole", training=claim.training, project=claim.project, error=error.detail)
            _cut(request)
        return answer

    async def _stream(self, claim: Claim, answer: web.StreamResponse) -> None:
        async with contextlib.aclosing(self._source.parts(claim.project, claim.digest)) as parts:
            while True:
                async with self._reading:
                    part = await anext(parts, None)
                if part is None:
                    break
                async with asyncio.timeout(_WRITE_SECONDS):
                    await answer.write(part)
        await answer.write_eof()


class _Busy(Exception):
    """There is no room for another request."""


def _claimed(request: web.Request) -> Claim | None:
    attempt = request.query.get("attempt", "")
    if not (attempt.isascii() and attempt.isdecimal() and len(attempt) < 10):
        return None
    return Claim(
        project=request.match_info["project"],
        digest=request.match_info["digest"],
        training=request.query.get("training", ""),
        attempt=int(attempt),
    )


def _later(words: str) -> web.Response:
    return web.Response(status=503, text=words, headers={"Retry-After": _RETRY_AFTER})


def _cut(request: web.Request) -> None:
    """End the connection, so that what was sent is not taken for the whole."""
    if request.transport is not None:
        request.transport.abort()
