"""The far end of work on files that happens where the files are: a small server that ends by itself when idle.

One request is one POST: a token and a question, as JSON. The answer is always 200 with a value or a problem, so that
any other status was said by something in between. Nothing is done for who does not know the token, of which only
the digest is known here.
"""

import asyncio
import contextlib
import hashlib
import hmac
import os
import signal
from collections.abc import Callable
from typing import Final

import msgspec
from aiohttp import web

from shared.contracts.common import Done
from shared.contracts.problem import Problem
from shared.errors import ElearnError, Internal, Malformed, Unauthenticated
from shared.settings import load
from shared.supervise import Wake

LARGEST: Final = 4 * 2**20
"""Bytes of a request at the most."""

Handle = Callable[[bytes], object]


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request."""

    token: str
    ask: msgspec.Raw


class Answered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer: a problem, or else a value."""

    value: msgspec.Raw = msgspec.Raw(b"null")
    problem: Problem | None = None


def digest_of(token: str) -> str:
    """What an agent is told of the token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Agent:
    """Answers questions with ``handle``, which may block.

    Args:
        token_digest: of the token that callers must know.
        idle_seconds: it ends when nobody has asked for so long.
    """

    def __init__(self, handle: Handle, *, token_digest: str, idle_seconds: float) -> None:
        self._handle = handle
        self._digest = token_digest
        self._idle = idle_seconds
        self._asked = Wake()
        self._under_way = 0
        self._closing = asyncio.Event()

    def application(self) -> web.Application:
        """The server."""
        app = web.Application(client_max_size=LARGEST)
        app.router.add_get("/healthz", self._healthy)
        app.router.add_post("/", self._answer)
        return app

    async def run(self, host: str | None, port: int) -> None:
        """Serve until nobody asks any more, or SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._closing.set)
        runner = web.AppRunner(self.application(), access_log=None, handle_signals=False)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            await self.until_idle()
        finally:
            await runner.cleanup()

    async def until_idle(self) -> None:
        """Wait until nobody has asked for long enough."""
        closing = asyncio.create_task(self._closing.wait(), name="agent closes")
        try:
            while not closing.done():
                waiting = asyncio.create_task(self._asked.wait(self._idle), name="agent idles")
                await asyncio.wait((waiting, closing), return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await waiting
                    return
                if not waiting.result() and not self._under_way:
                    return
        finally:
            closing.cancel()

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _answer(self, request: web.Request) -> web.Response:
        self._under_way += 1
        try:
            answer = await self._answered(await request.read())
        finally:
            self._under_way -= 1
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _answered(self, body: bytes) -> Answered:
        try:
            asked = msgspec.json.decode(body, type=Asked)
            if not hmac.compare_digest(digest_of(asked.token), self._digest):
                raise Unauthenticated("the agent does not know this token")
            self._asked.ring()
            value = await asyncio.to_thread(self._handle, bytes(asked.ask))
        except msgspec.DecodeError as error:
            return Answered(problem=Malformed(str(error)).problem())
        except ElearnError as error:
            return Answered(problem=error.problem())
        except OSError as error:
            return Answered(problem=Internal(f"the agent can't work on the files: {error}").problem())
        return Answered(value=msgspec.Raw(msgspec.json.encode(Done() if value is None else value)))


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Read from ``ELEARN_<FIELD>``.

    Attributes:
        agent_port: where it listens, on all addresses.
        agent_token_digest: of the token that callers must know.
        agent_idle_seconds: it ends when nobody has asked for so long.
    """

    agent_port: int
    agent_token_digest: str
    agent_idle_seconds: float = 300.0


def main(handle: Handle) -> None:
    """Run an agent as a process of its own."""
    settings = load(Settings, os.environ)
    agent = Agent(handle, token_digest=settings.agent_token_digest, idle_seconds=settings.agent_idle_seconds)
    asyncio.run(agent.run(None, settings.agent_port))  # a pod has addresses that nobody knows
