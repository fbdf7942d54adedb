"""Request and reply between services, as NATS micro services."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import msgspec
import nats.errors
import structlog
from nats.micro import add_service
from nats.micro.request import ERROR_CODE_HEADER, Request
from nats.micro.service import Service, ServiceConfig

from shared import context
from shared.bus.connection import Connection
from shared.codec import invalid_from
from shared.contracts.problem import Problem
from shared.contracts.rpc import AnyVerb, Verb
from shared.errors import ElearnError, Internal, Unavailable, from_problem

_log = structlog.get_logger(__name__)

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R", bound=msgspec.Struct)

Handlers = Mapping[AnyVerb, Callable[[Any], Awaitable[Any]]]

_VERSION: Final = "1.0.0"
_MOST_AT_ONCE: Final = 128
_HANDLING_TIMEOUT: Final = 60.0


async def call(connection: Connection, verb: Verb[Q, R], request: Q, *, timeout: float = 10.0) -> R:
    """Ask a service and wait for its answer.

    Raises:
        ElearnError: what the service answered, raised again.
        Unavailable: the service or the bus is away, or silent for ``timeout`` seconds.
    """
    client = connection.require()
    try:
        reply = await client.request(
            verb.subject,
            verb.encoder.encode(request),
            timeout=timeout,
            headers=context.current().headers() or None,
        )
    except nats.errors.NoRespondersError:
        raise Unavailable(f"the {verb.service} service is away; try again") from None
    except (nats.errors.TimeoutError, TimeoutError):
        raise Unavailable(f"the {verb.service} service did not answer within {timeout:g} s; try again") from None
    except nats.errors.Error as error:
        raise Unavailable(f"the message bus (NATS) is away: {error}") from error
    if reply.headers and ERROR_CODE_HEADER in reply.headers:
        raise from_problem(msgspec.json.decode(reply.data, type=Problem))
    return verb.reply_decoder.decode(reply.data)


class Server:
    """Answers a room's verbs; each request in a task of its own, so that a slow one delays no other."""

    def __init__(self, connection: Connection, service: str, handlers: Handlers) -> None:
        self._connection = connection
        self._service = service
        self._handlers = handlers
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Service | None = None

    async def start(self) -> None:
        """Begin to answer.

        Raises:
            Unavailable: NATS is away.
        """
        client = self._connection.require()
        config = ServiceConfig(name=self._service, version=_VERSION, description=f"elearn {self._service}")
        self._running = await add_service(client, config)
        for verb, handle in self._handlers.items():
            await self._running.add_endpoint(name=verb.name, subject=verb.subject, handler=self._spawning(verb, handle))

    async def stop(self) -> None:
        """Take no more requests, and let those under way end within five seconds."""
        if self._running is not None and self._connection.up:
            try:
                async with asyncio.timeout(3):
                    await self._running.stop()
            except (TimeoutError, nats.errors.Error) as error:
                _log.debug("stopping the rpc service", error=repr(error))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawning(self, verb: AnyVerb, handle: Callable[[Any], Awaitable[Any]]) -> Callable[[Request], Awaitable[None]]:
        async def on_request(request: Request) -> None:
            if len(self._tasks) >= _MOST_AT_ONCE:
                await _refuse(request, Unavailable(f"the {self._service} service is busy; try again", retry=1))
                return
            task = asyncio.create_task(self._answer(verb, handle, request), name=f"rpc {verb.subject}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return on_request

    async def _answer(self, verb: AnyVerb, handle: Callable[[Any], Awaitable[Any]], request: Request) -> None:
        with context.caused_by(context.Cause.from_headers(request.headers or {})):
            try:
                async with asyncio.timeout(_HANDLING_TIMEOUT):
                    reply = await handle(verb.request_decoder.decode(request.data))
                    await request.respond(verb.encoder.encode(reply))
            except msgspec.ValidationError as error:
                await _refuse(request, invalid_from(error))
            except ElearnError as error:
                await _refuse(request, error)
            except nats.errors.Error as error:
                _log.warning("reply lost", verb=verb.subject, error=repr(error))
            except Exception:  # noqa: BLE001 - the caller is told, the log keeps the story
                _log.exception("request failed", verb=verb.subject)
                await _refuse(
                    request, Internal(f"the {self._service} service failed on this request; its log says why")
                )


async def _refuse(request: Request, error: ElearnError) -> None:
    problem = error.problem()
    try:
        await request.respond_error(
            str(problem.status), " ".join(problem.title.split()), data=msgspec.json.encode(problem)
        )
    except nats.errors.Error as failed:
        _log.warning("reply lost", error=repr(failed))
