"""A Kubernetes API over real HTTP, for tests: faithful where elearn looks, and breakable where clusters break.

It serves lists in pages, watches with bookmarks and resourceVersions, server-side apply with field owners, patches,
deletion with owners and preconditions, logs and access reviews. Every manifest that it takes is checked against the
published schemas of the oldest and newest supported Kubernetes.

    async with KubeServer() as server:
        async with Cluster(server.settings(), find=server.access) as cluster: ...
        server.store.add(PODS, {...}, "default")     what a controller or a stranger does
        server.fail(429, retry_after=0, times=2)     what goes wrong with the next requests
        await server.cut()                           what goes wrong with open watches
"""

import json
import re
import ssl
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from shared.kube.credentials import Fixed, Grant
from shared.kube.kubeconfig import Access
from shared.kube.settings import KubernetesSettings
from tests.support.kube_api import KubeApi
from tests.support.kube_errors import ApiError
from tests.support.kube_faults import Fault, What, abort
from tests.support.kube_store import KubeStore


class KubeServer(KubeApi):
    """The server.

    Attributes:
        requests: every request: (method, path, query).
        headers: of the last request.
        tokens: bearer tokens that are let in; None: no token is asked for.
        port: where it listens, once it does.
        broken: what it failed at by itself; raised when it is left.
    """

    def __init__(self, store: KubeStore | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(store)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.headers: dict[str, str] = {}
        self.tokens: set[str] | None = None
        self.port = 0
        self.broken: list[Exception] = []
        self._tls = tls
        self._faults: list[Fault] = []
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if self.broken:
            raise ExceptionGroup("the emulated server broke", self.broken)

    async def start(self) -> None:
        """Listen; after a stop on the same port."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            app, shutdown_timeout=0.01, handle_signals=False, handler_cancellation=True, access_log=None
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close everything at once, as a killed server does."""
        await self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def settings(self, **changes: Any) -> KubernetesSettings:
        """Settings of a client that has little patience."""
        return msgspec.structs.replace(KubernetesSettings(kubernetes_timeout=5.0, kubernetes_patience=5.0), **changes)

    def access(self) -> Access:
        """How to reach it, with the first of its tokens."""
        token = next(iter(self.tokens or ()), "")
        grant = Grant(authorization=f"Bearer {token}") if token else Grant()
        return Access(server=f"http://127.0.0.1:{self.port}", namespace="default", credential=Fixed(grant))

    def kubeconfig(self, token: str = "", namespace: str = "default") -> str:
        """The text of a kubeconfig for it, as processes of their own need one."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": "test", "user": {"token": token} if token else {}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            }
        )

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def fail(
        self,
        code: int = 0,
        reason: str = "",
        message: str = "injected",
        *,
        what: What = "status",
        times: int = 1,
        method: str | None = None,
        path: str = "",
        watch: bool | None = None,
        retry_after: float | str | None = None,
        **details: Any,
    ) -> Fault:
        """The next requests that match go wrong: a status, a cut before or after the deed, silence, a proxy's page."""
        fault = Fault(
            what=what,
            times=times,
            method=method,
            path=re.compile(path),
            watch=watch,
            error=ApiError(code, reason, message, **details) if what == "status" else None,
            retry_after=None if retry_after is None else str(retry_after),
        )
        self._faults.append(fault)
        return fault

    async def cut(self, *, mid_line: bool = False) -> None:
        """Cut every open watch, now, or in the middle of its next line."""
        await self.watches.cut(mid_line=mid_line)

    def end_streams(self) -> None:
        """End every open watch in good order, as after timeoutSeconds."""
        self.watches.act("end")

    def gone(self) -> None:
        """Forget the history and say so in every open watch: an ERROR event with code 410."""
        self.store.compact()
        self.watches.act("gone")

    def upset(self) -> None:
        """Say in every open watch that something else went wrong."""
        self.watches.act("upset")

    def bookmark(self) -> None:
        """Send a bookmark to every open watch."""
        self.watches.act("bookmark")

    # -- what goes on -------------------------------------------------------------------------------------------------

    async def watched(self, count: int = 1, *, plural: str = "", timeout: float = 5.0) -> None:
        """Wait until exactly that many watches are open (of one kind)."""
        await self.watches.counted(count, plural=plural, timeout=timeout)

    async def settled(self, *, timeout: float = 5.0) -> None:
        """Wait until every open watch has been sent everything."""
        await self.watches.settled(timeout=timeout)

    def asked(self, method: str, path: str, *, watch: bool | None = None) -> int:
        """How many requests there were."""
        return sum(
            each == method and re.search(path, where) is not None and watch in (None, "watch" in query)
            for each, where, query in self.requests
        )

    async def log(
        self, pod: str, text: str | bytes, *, namespace: str = "default", container: str = "", end: bool = False
    ) -> None:
        """A container writes lines to its log; at its end followers are let go. ``logs`` writes bytes as they are."""
        data = text.encode() if isinstance(text, str) else text
        lines = b"".join(line + b"\n" for line in data.split(b"\n") if line)
        await self.logs.write((namespace, pod, container), lines, end=end)

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        self.headers = dict(request.headers)
        fault = next((fault for fault in self._faults if fault.meets(request)), None)
        try:
            if fault is not None and (instead := await fault.strike(request)) is not None:
                return instead
            self._let_in(request)
            answer = await self._route(request)
        except Exception as error:
            if not isinstance(error, ApiError | ConnectionError):
                self.broken.append(error)
                return web.Response(status=418, text=f"the emulated server broke: {error!r}")
            if isinstance(error, ConnectionError):
                raise
            headers = {"Retry-After": fault.retry_after} if fault and fault.retry_after is not None else {}
            return web.json_response(error.status, status=error.code, headers=headers)
        if fault is not None and fault.what == "drop answer":
            return abort(request)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(
            body=msgspec.json.encode(answer),
            status=201 if request.method == "POST" else 200,
            content_type="application/json",
        )

    def _let_in(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and given not in self.tokens:
            raise ApiError(401, "Unauthorized", "Unauthorized")
