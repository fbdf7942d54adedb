"""A request and its repetitions: until it is answered, refused for good, or patience is used up."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import msgspec
import structlog

from shared.errors import ElearnError, Internal, Unavailable
from shared.kube.backoff import Backoff
from shared.kube.connection import Answer, Connection, Query
from shared.kube.errors import Asked, Busy, Unreachable, error_of, read_status

_log = structlog.get_logger(__name__)

T = TypeVar("T")


class Sender:
    """Repeats what may be repeated: on 429, on 5xx, and where there was no answer.

    Args:
        pauses: makes the pauses of one request.
        patience: seconds after which no new try is begun.
    """

    def __init__(self, connection: Connection, pauses: Callable[[], Backoff], *, patience: float) -> None:
        self._connection = connection
        self._pauses = pauses
        self._patience = patience

    async def __call__(
        self,
        method: str,
        path: str,
        asked: Asked,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        repeatable: bool = True,
        patience: float | None = None,
    ) -> Answer:
        """The answer to a request, which is a good one.

        Args:
            repeatable: doing it twice is as good as once.
            patience: seconds, where not those of all requests.

        Raises:
            ElearnError: see :mod:`shared.kube.errors`.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + (self._patience if patience is None else patience)
        backoff = self._pauses()
        while True:
            error: Unavailable
            wait = 0.0
            try:
                answer = await self._connection.request(
                    method, path, asked, query=query, body=body, content_type=content_type
                )
            except Unreachable as away:
                if not (repeatable or away.unsent):
                    raise
                error = away
            else:
                if answer.status < 300:
                    return answer
                status = read_status(answer.status, answer.body)
                refusal = error_of(status, asked, retry_after=answer.retry_after)
                again = answer.status == 429 or (repeatable and (answer.status >= 500 or _lost_race(refusal)))
                if not again:
                    raise refusal
                wait = refusal.pause if isinstance(refusal, Busy) else answer.retry_after or 0.0
                error = refusal if isinstance(refusal, Unavailable) else Unavailable(refusal.detail)
            pause = backoff.next(at_least=wait)
            if loop.time() + pause > give_up:
                raise error
            _log.debug("asking Kubernetes again", asked=str(asked), error=error.detail, pause=pause)
            await asyncio.sleep(pause)


async def side_by_side(calls: Iterable[Awaitable[object]]) -> None:
    """All calls at once, each to its end; then the first error, if there was one."""
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _lost_race(error: ElearnError) -> bool:
    """An apply met another write of the same object, or of its first appearance."""
    return error.status == 409 and "please apply your changes to the latest version" in error.detail


def decode(body: bytes | msgspec.Raw, kind: type[T], asked: Asked) -> T:
    """An answer as a struct; a misfit is our own fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise Internal(f"Kubernetes, asked to {asked}, answered what can't be read: {error}") from None
