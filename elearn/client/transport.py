"""One call of the client: what it sends, what it retries and for how long, and the error it raises."""

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

import httpx
import msgspec
import stamina

from elearn.client.connection import Connection
from elearn.client.errors import Unreachable
from shared.contracts.common import Page
from shared.contracts.problem import Problem
from shared.errors import ElearnError, Internal, Unavailable, from_problem

T = TypeVar("T")
Query = Mapping[str, str | int | bool | tuple[str, ...] | None]
Content = Callable[[], Iterable[bytes]]
"""Makes a request's body anew for every try."""

REFUSED_PATIENCE: Final = 5.0
"""Seconds to go on trying where nothing listens."""
RESTART_PATIENCE: Final = 20.0
"""The same where somebody did before: a gateway that is being restarted is back sooner."""
_MOST_PROBLEM_BYTES: Final = 1 << 20
_LONGEST_LINE: Final = 1 << 20
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0)


class Transport:
    """Sends requests; safe to use from several threads.

    Args:
        connection: where to, and who asks.
        patience: seconds for which a request is tried again while elearn is away (503) or can't be
            reached; ``Retry-After`` is honoured within them.
        inner: what carries the requests, in place of the network.
    """

    def __init__(
        self, connection: Connection, *, patience: float = 30.0, inner: httpx.BaseTransport | None = None
    ) -> None:
        self.connection = connection
        self._patience = patience
        self._reached = False
        self._http = httpx.Client(
            base_url=connection.url,
            headers={"Authorization": f"Bearer {connection.token}", "User-Agent": "elearn-client"},
            timeout=_TIMEOUT,
            transport=inner,
            # Loading the certificates takes longer than the request, and http has no use for them.
            verify=connection.url.startswith("https:"),
            # A proxy of the environment can't reach this machine's own loopback.
            trust_env=not connection.loopback,
        )

    def close(self) -> None:
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        reply: type[T],
        *,
        query: Query | None = None,
        body: msgspec.Struct | Mapping[str, object] | None = None,
    ) -> T:
        """Send a request and decode its answer.

        Raises:
            ElearnError: what the gateway answered, or that it can't be reached.
        """
        headers = {"Accept": "application/json"}
        content: Content | None = None
        if body is not None:
            encoded = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
            headers["Content-Length"] = str(len(encoded))
            content = lambda: (encoded,)  # noqa: E731
        if method in ("POST", "PATCH"):
            headers["Idempotency-Key"] = uuid.uuid4().hex
        response = self.send(method, path, query=query, headers=headers, content=content)
        return self.decode(response, reply)

    def send(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        content: Content | None = None,
    ) -> httpx.Response:
        """Send a request that may be sent again without harm; the answer has been read whole."""
        tries = 0

        def once() -> httpx.Response:
            nonlocal tries
            tries += 1
            with self._opened(method, path, query, headers, content) as response:
                # The try before this one has done it; only its answer was lost.
                if response.status_code == 404 and method == "DELETE" and tries > 1:
                    return httpx.Response(200, json={})
                self._check(response)
                response.read()
                return response

        return self._retried(once)

    @contextlib.contextmanager
    def stream(
        self,
        path: str,
        *,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> Iterator[httpx.Response]:
        """The answer of a GET as it arrives. Opening is tried again; what breaks later is the caller's.

        Args:
            quiet: seconds without a byte after which the stream counts as lost.

        Raises:
            Unavailable: it broke off; also while it is read.
            ElearnError: what the gateway answered.
        """
        with contextlib.ExitStack() as stack:

            def once() -> httpx.Response:
                with contextlib.ExitStack() as attempt:
                    opened = attempt.enter_context(self._opened("GET", path, query, headers, None, quiet))
                    self._check(opened)
                    stack.push(attempt.pop_all())
                    return opened

            response = self._retried(once)
            with self._network_errors():
                yield response

    def pages(self, path: str, reply: type[Page[T]], *, query: Query | None = None) -> Iterator[T]:
        """Every item of a list, page after page as they are used."""
        cursor: str | None = None
        while True:
            page = self.call("GET", path, reply, query={**(query or {}), "cursor": cursor})
            yield from page.items
            if page.next is None:
                return
            if page.next == cursor:
                raise Internal(f"{self.connection.url}{path} answers the same page for ever")
            cursor = page.next

    def decode(self, response: httpx.Response, reply: type[T]) -> T:
        """The answer's body as a struct.

        Raises:
            Internal: it is not what this client knows.
        """
        try:
            return msgspec.json.decode(response.content or b"{}", type=reply)
        except msgspec.DecodeError as error:
            raise Internal(
                f"{self.connection.url} answered what this client does not understand ({error}): "
                "is one of the two an older release, or is it not elearn?"
            ) from error

    @contextlib.contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        query: Query | None,
        headers: Mapping[str, str] | None,
        content: Content | None,
        quiet: float | None = None,
    ) -> Iterator[httpx.Response]:
        given = {key: _parameter(value) for key, value in (query or {}).items() if value not in (None, ())}
        timeout = httpx.Timeout(quiet, connect=5.0) if quiet is not None else httpx.USE_CLIENT_DEFAULT
        with (
            self._network_errors(),
            self._http.stream(
                method,
                path,
                params=given,
                headers=dict(headers or {}),
                content=content() if content is not None else None,
                timeout=timeout,
            ) as response,
        ):
            self._reached = True
            yield response

    @contextlib.contextmanager
    def _network_errors(self) -> Iterator[None]:
        url = self.connection.url
        try:
            yield
        except httpx.ConnectError as error:
            if self.connection.loopback:
                raise Unreachable(f"elearn is not running at {url}: start it with `elearn up`") from error
            raise Unreachable(f"can't reach elearn at {url}: {error}") from error
        except httpx.TimeoutException as error:
            raise Unavailable(f"elearn at {url} did not answer in time") from error
        except (httpx.TransportError, httpx.StreamError) as error:
            words = str(error) or type(error).__name__
            raise Unavailable(f"the connection to elearn at {url} was lost: {words}") from error

    def _check(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise _error_of(response)

    def _retried(self, once: Callable[[], T]) -> T:
        """Call ``once`` until it succeeds, or is refused, or patience ends."""
        began = time.monotonic()
        refused_since: float | None = None
        tries = 0

        def pause(error: Exception) -> bool | float:
            nonlocal tries, refused_since
            if not isinstance(error, Unavailable):
                return False
            now = time.monotonic()
            left = self._patience - (now - began)
            refused = isinstance(error, Unreachable)
            if refused:
                refused_since = now if refused_since is None else refused_since
                patience = RESTART_PATIENCE if self._reached else REFUSED_PATIENCE
                left = min(left, patience - (now - refused_since))
            if left <= 0:
                return False
            tries += 1
            told = 0.0 if refused else float(error.retry_after or 0)
            grown = min(0.1 * 2**tries, 3.0) * random.uniform(0.7, 1.3)  # noqa: S311 - jitter
            wait: float = min(max(told, grown), max(left, 0.05))
            return wait

        for attempt in stamina.retry_context(on=pause, attempts=None, timeout=None):
            with attempt:
                return once()
        raise AssertionError("unreachable")


def lines_of(parts: Iterable[bytes]) -> Iterator[str]:
    """Lines as they were written: cut at line feeds alone, since what was printed may hold other marks."""
    held = b""
    for part in parts:
        *whole, held = (held + part).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")
        if len(held) > _LONGEST_LINE:
            yield held.decode(errors="replace")
            held = b""
    if held:
        yield held.decode(errors="replace")


def label_query(labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """Labels as the ``label`` parameters of a list."""
    return tuple(f"{key}={value}" for key, value in (labels or {}).items())


def _parameter(value: str | int | bool | tuple[str, ...] | None) -> str | tuple[str, ...]:
    if isinstance(value, tuple):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _error_of(response: httpx.Response) -> ElearnError:
    """The error of an answer; one that is not elearn's own comes from a proxy between."""
    body = b""
    for part in response.iter_bytes():
        body += part
        if len(body) > _MOST_PROBLEM_BYTES:
            break
    status = response.status_code
    after = response.headers.get("Retry-After", "")
    retry = int(after) if after.isdecimal() else 2
    if "problem+json" in response.headers.get("Content-Type", ""):
        try:
            problem = msgspec.json.decode(body, type=Problem)
        except msgspec.DecodeError:
            problem = None
        if problem is not None:
            if status == Unavailable.status:
                return Unavailable(problem.detail, problem.errors, retry=problem.retry_after or retry)
            return from_problem(problem)
    words = f"{response.request.method} {response.request.url} was answered {status} {response.reason_phrase}"
    if status in (429, 502, 503, 504):
        return Unavailable(words, retry=retry)
    return from_problem(Problem(type="", title=response.reason_phrase, status=status, detail=words))
