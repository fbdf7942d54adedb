"""One connection to one API server: TLS, credentials, one request at a time; no retries, no meaning."""

import asyncio
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import aiohttp
import msgspec
import structlog
from aiohttp.connector import AddrInfoType

from shared import clock
from shared.errors import NotFound, Unavailable
from shared.kube.credentials import Grant
from shared.kube.errors import Asked, Unreachable, error_of, read_status
from shared.kube.kubeconfig import Access

_log = structlog.get_logger(__name__)

_CONNECT_SECONDS: Final = 5.0
_LOOK_AGAIN_SECONDS: Final = 5.0  # how often, at the most, an unreachable server has us read the kubeconfig again
_USER_AGENT: Final = "elearn"

Query = Mapping[str, str]


class Answer(msgspec.Struct, frozen=True):
    """An answer, whatever its status."""

    status: int
    body: bytes
    retry_after: float | None


class Connection:
    """Sends requests with current credentials.

    Args:
        find: says how to reach the cluster; called in a thread, and again when the credentials no longer do.
        timeout: seconds for a whole request.
        at_once: requests under way at the same time; further ones wait.
    """

    def __init__(self, find: Callable[[], Access], *, timeout: float, at_once: int) -> None:
        self._find = find
        self._timeout = timeout
        self._room = asyncio.Semaphore(at_once)
        self._renewing = asyncio.Lock()
        self._access: Access | None = None
        self._session: aiohttp.ClientSession | None = None
        self._session_for: tuple[object, ...] = ()
        self._generation = 0
        self._found_at = 0.0

    async def open(self) -> Access:
        """Read how to reach the cluster; nothing is sent yet."""
        access = self._access = await asyncio.to_thread(self._find)
        self._found_at = time.monotonic()
        return access

    async def close(self) -> None:
        """Close every connection; requests under way fail."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def access(self) -> Access:
        if self._access is None:
            raise RuntimeError("the connection is not open: use `async with`")
        return self._access

    async def request(
        self,
        method: str,
        path: str,
        asked: Asked,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> Answer:
        """One request, repeated once where the server refused the credentials and there may be newer ones.

        Raises:
            Unreachable: there was no answer.
        """
        generation = self._generation
        answer = await self._once(method, path, asked, query, body, content_type)
        if answer.status == 401:
            await self._renew(generation)
            answer = await self._once(method, path, asked, query, body, content_type)
        return answer

    async def _once(
        self, method: str, path: str, asked: Asked, query: Query | None, body: bytes | None, content_type: str
    ) -> Answer:
        async with (
            self._room,
            self._answers(
                method, path, asked, query, body, content_type, aiohttp.ClientTimeout(self._timeout, _CONNECT_SECONDS)
            ) as response,
        ):
            return Answer(response.status, await response.read(), _retry_after(response))

    @asynccontextmanager
    async def stream(
        self, path: str, asked: Asked, *, query: Query | None = None, idle: float | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """An answer that is read as it comes.

        Args:
            idle: seconds of silence after which the connection is taken for dead; None: never.

        Raises:
            Unreachable: there was no answer, or the chunks ended before the answer did.
            ElearnError: the server refused.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=idle)
        for again in (True, False):
            generation = self._generation
            async with self._answers("GET", path, asked, query, None, "", timeout) as response:
                if response.status == 401 and again:
                    pass  # renewed below, once this answer is closed
                elif response.status >= 400:
                    raise error_of(
                        read_status(response.status, await response.read()), asked, retry_after=_retry_after(response)
                    )
                else:
                    yield self._chunks(response, asked)
                    return
            await self._renew(generation)

    @asynccontextmanager
    async def socket(
        self, path: str, asked: Asked, *, query: Sequence[tuple[str, str]], protocols: tuple[str, ...]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket, as processes in pods are talked to.

        Raises:
            Unreachable: there was no answer.
            ElearnError: the server refused; a refused handshake has no words of its own.
        """
        for again in (True, False):
            access, generation = self.access, self._generation
            grant = await access.credential.grant()
            headers = {**self._headers(access, grant), "Accept": "*/*"}  # a real server answers JSON's with 406
            session = await self._session_with(access, grant)
            try:
                async with asyncio.timeout(self._timeout):
                    opened = await session.ws_connect(
                        access.server + path,
                        params=query,
                        protocols=protocols,
                        headers=headers,
                        proxy=access.proxy or None,
                        server_hostname=access.server_name or None,
                        max_msg_size=0,
                        heartbeat=20.0,
                    )
            except aiohttp.WSServerHandshakeError as error:
                if error.status == 401 and again:
                    await self._renew(generation)
                    continue
                if error.status == 404:
                    raise NotFound(f"Kubernetes, asked to {asked}: not found, or it does not run") from None
                raise error_of(read_status(error.status, error.message.encode()), asked) from None
            except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
                raise Unreachable(
                    f"the Kubernetes API at {access.server} can't be reached to {asked}: {_words(error)}"
                ) from None
            async with opened:
                yield opened
            return

    async def _chunks(self, response: aiohttp.ClientResponse, asked: Asked) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"Kubernetes, asked to {asked}, fell silent: {_words(error)}") from None

    @asynccontextmanager
    async def _answers(
        self,
        method: str,
        path: str,
        asked: Asked,
        query: Query | None,
        body: bytes | None,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        access = self.access
        grant = await access.credential.grant()
        headers = self._headers(access, grant)
        if body is not None:
            headers["Content-Type"] = content_type
        session = await self._session_with(access, grant)
        try:
            async with session.request(
                method,
                access.server + path,
                params=query,
                data=body,
                headers=headers,
                timeout=timeout,
                proxy=access.proxy or None,
                server_hostname=access.server_name or None,
                allow_redirects=False,
            ) as response:
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            unsent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            if unsent:
                await self._look_again()
            raise Unreachable(
                f"the Kubernetes API at {access.server} can't be reached to {asked}: {_words(error)}", unsent=unsent
            ) from None

    @staticmethod
    def _headers(access: Access, grant: Grant) -> dict[str, str]:
        headers = {**access.headers, "Accept": "application/json", "User-Agent": _USER_AGENT}
        if grant.authorization:
            headers["Authorization"] = grant.authorization
        return headers

    async def _session_with(self, access: Access, grant: Grant) -> aiohttp.ClientSession:
        wanted = (*access.route, grant.certificate, grant.key)
        if self._session is None or self._session_for != wanted:
            context = await asyncio.to_thread(_tls, access, grant)
            if self._session is not None and self._session_for == wanted:
                return self._session  # somebody else was quicker
            old, self._session = self._session, _session(context)
            self._session_for = wanted
            if old is not None:
                await old.close()
        return self._session

    async def _renew(self, generation: int) -> None:
        """Read credentials anew, once for all who met the same refusal."""
        async with self._renewing:
            if generation == self._generation:
                self._access = await asyncio.to_thread(self._find)
                self._found_at = time.monotonic()
                self._generation += 1

    async def _look_again(self) -> None:
        """The server may have moved and the kubeconfig with it."""
        if time.monotonic() - self._found_at < _LOOK_AGAIN_SECONDS:
            return
        try:
            await self._renew(self._generation)
        except Unavailable as error:
            _log.warning("how to reach Kubernetes can't be read again", error=error.detail)


def _session(context: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, ssl=context, socket_factory=_socket, keepalive_timeout=30)
    # Asked to trust the environment, it reads that and ~/.netrc for every single request, in a thread.
    return aiohttp.ClientSession(connector=connector, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())


def _socket(address: AddrInfoType) -> socket.socket:  # a vanished peer is noticed within half a minute
    family, kind, protocol, *_ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


def _tls(access: Access, grant: Grant) -> ssl.SSLContext | bool:
    if not access.server.startswith("https://"):
        return True
    try:
        context = ssl.create_default_context(cadata=access.authorities or None)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # clusters' own authorities often lack a key identifier
        if not access.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if grant.certificate:
            # Python takes these from files alone: they are there for no longer than this.
            with tempfile.TemporaryDirectory(prefix="elearn-") as folder:
                certificate, key = Path(folder, "certificate"), Path(folder, "key")
                for path, text in ((certificate, grant.certificate), (key, grant.key)):
                    path.touch(mode=0o600)
                    path.write_text(text)
                context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise Unavailable(f"certificates in the kubeconfig can't be used: {error}", retry=30) from None
    return context


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - clock.now()).total_seconds()) if text else None
    except (ValueError, TypeError):
        return None


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
