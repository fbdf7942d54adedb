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

import asyncio
import base64
import json
import re
import ssl
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from aiohttp import WSMsgType, web

from shared.kube.credentials import Fixed, Grant
from shared.kube.kubeconfig import Access
from shared.kube.resources import PODS, Resource, resource_of
from shared.kube.settings import KubernetesSettings
from tests.support.kube_errors import ApiError
from tests.support.kube_fields import Document
from tests.support.kube_logs import KubeletLogs
from tests.support.kube_objects import Entry
from tests.support.kube_store import KubeStore

USER = "system:serviceaccount:elearn:elearn"


class Fault:
    """Something that happens to requests instead of, or besides, their answer."""

    def __init__(
        self,
        *,
        what: Literal["status", "drop", "drop answer", "hang", "page"],
        times: int,
        method: str | None,
        path: str,
        watch: bool | None,
        error: ApiError | None,
        retry_after: str | None,
    ) -> None:
        self.what, self.times, self.method, self.watch, self.error = what, times, method, watch, error
        self.path = re.compile(path)
        self.retry_after = retry_after

    def meets(self, request: web.Request) -> bool:
        return (
            self.times > 0
            and self.method in (None, request.method)
            and self.watch in (None, "watch" in request.query)
            and self.path.search(request.path) is not None
        )


class Stream:
    """One open watch."""

    def __init__(self, request: web.Request, resource: Resource) -> None:
        self.request = request
        self.resource = resource
        self.changed = asyncio.Event()
        self.actions: deque[str] = deque()
        self.cut_line = False
        self.position = 0

    def act(self, action: str) -> None:
        self.actions.append(action)
        self.changed.set()


class KubeServer:
    """The server.

    Attributes:
        store: the cluster's state.
        requests: every request: (method, path, query).
        headers: of the last request.
        tokens: bearer tokens that are let in; None: no token is asked for.
        gone_in_stream: a watch from a forgotten resourceVersion is answered with 200 and a 410 in the stream, as
            the watch cache does, rather than with 410.
        version: what ``/version`` tells.
        logs: of containers.
        ports: (namespace, pod, port): the address that forwarding leads to.
        on_exec: (pod, command, input): what becomes of it, as (exit code, output, errors).
        rights: whether RBAC allows (verb, API group, plural, namespace or None); not set: it allows everything.
    """

    def __init__(self, store: KubeStore | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.store = store or KubeStore()
        self._tls = tls
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.headers: dict[str, str] = {}
        self.tokens: set[str] | None = None
        self.gone_in_stream = True
        self.version = ("1", "36")
        self.streams: set[Stream] = set()
        self.port = 0
        self.ports: dict[tuple[str, str, int], tuple[str, int]] = {}
        self.exec_protocol = "v5.channel.k8s.io"
        self.on_exec: Callable[[str, list[str], bytes], tuple[int, bytes, bytes]] = lambda *_: (0, b"", b"")
        self.broken: list[Exception] = []
        self._faults: list[Fault] = []
        self._denied: set[tuple[str, str, str | None]] = set()
        self.rights: Callable[[str, str, str, str | None], bool] = lambda *_: True
        self.logs = KubeletLogs()
        self._opened = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self.store.on_change.append(self._wake)
        self.store.on_write.append(self._end_logs)

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
        what: Literal["status", "drop", "drop answer", "hang", "page"] = "status",
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
            path=path,
            watch=watch,
            error=ApiError(code, reason, message, **details) if what == "status" else None,
            retry_after=None if retry_after is None else str(retry_after),
        )
        self._faults.append(fault)
        return fault

    def deny(self, verb: str, plural: str, namespace: str | None = None) -> None:
        """RBAC does not allow it; no namespace: nowhere."""
        self._denied.add((verb, plural, namespace))

    def allow(self) -> None:
        """RBAC allows everything again."""
        self._denied.clear()

    async def cut(self, *, mid_line: bool = False) -> None:
        """Cut every open watch, now, or in the middle of its next line."""
        for stream in tuple(self.streams):
            if mid_line:
                stream.cut_line = True
            else:
                stream.act("cut")
        if not mid_line:
            await self.watched(0)

    def end_streams(self) -> None:
        """End every open watch in good order, as after timeoutSeconds."""
        self._act("end")

    def gone(self) -> None:
        """Forget the history and say so in every open watch: an ERROR event with code 410."""
        self.store.compact()
        self._act("gone")

    def upset(self) -> None:
        """Say in every open watch that something else went wrong."""
        self._act("upset")

    def bookmark(self) -> None:
        """Send a bookmark to every open watch."""
        self._act("bookmark")

    async def watched(self, count: int = 1, *, plural: str = "", timeout: float = 5.0) -> None:
        """Wait until exactly that many watches are open (of one kind)."""

        def open_now() -> bool:
            return sum(not plural or stream.resource.plural == plural for stream in self.streams) == count

        async with asyncio.timeout(timeout), self._opened:
            await self._opened.wait_for(open_now)

    async def settled(self, *, timeout: float = 5.0) -> None:
        """Wait until every open watch has been sent everything."""
        async with asyncio.timeout(timeout):
            while any(stream.position < self.store.revision for stream in self.streams):
                await asyncio.sleep(0)

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

    def _act(self, action: str) -> None:
        for stream in self.streams:
            stream.act(action)

    def _wake(self) -> None:
        for stream in self.streams:
            stream.changed.set()

    def _end_logs(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        if resource == PODS and before is not None and after is None:
            self.logs.end(before["metadata"]["namespace"], before["metadata"]["name"])

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        self.headers = dict(request.headers)
        fault = next((fault for fault in self._faults if fault.meets(request)), None)
        if fault is not None:
            fault.times -= 1
            if fault.what == "hang":
                await asyncio.sleep(3600)
            if fault.what == "drop":
                return self._abort(request)
            if fault.what == "page":
                return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")
        try:
            if fault is not None and fault.error is not None:
                raise fault.error
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
            return self._abort(request)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(
            body=msgspec.json.encode(answer),
            status=201 if request.method == "POST" else 200,
            content_type="application/json",
        )

    @staticmethod
    def _abort(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    def _let_in(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and given not in self.tokens:
            raise ApiError(401, "Unauthorized", "Unauthorized")

    def _allow(self, verb: str, resource: Resource, namespace: str | None, subresource: str = "") -> None:
        plural = f"{resource.plural}/{subresource}" if subresource else resource.plural
        if self._may(verb, resource.group, plural, namespace):
            return
        where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
        raise ApiError(
            403,
            "Forbidden",
            f'{resource.plural} is forbidden: User "{USER}" cannot {verb} resource "{plural}" in API group'
            f' "{resource.group}"{where}',
            group=resource.group,
            kind=resource.plural,
        )

    def _allow_owners(self, document: Document, namespace: str | None) -> None:
        """OwnerReferencesPermissionEnforcement, an admission that some clusters have, OpenShift among them."""
        for owner in document.get("metadata", {}).get("ownerReferences", ()):
            if owner.get("blockOwnerDeletion"):
                self._allow("update", resource_of(owner["apiVersion"], owner["kind"]), namespace, "finalizers")

    def _may(self, verb: str, group: str, plural: str, namespace: str | None) -> bool:
        denied = {(verb, plural, namespace), (verb, plural, None)} & self._denied
        return not denied and self.rights(verb, group, plural, namespace)

    async def _route(self, request: web.Request) -> Document | web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        if parts == ["version"]:
            major, minor = self.version
            return {"major": major, "minor": minor, "gitVersion": f"v{major}.{minor}.0"}
        if parts in (["readyz"], ["livez"]):
            return web.Response(text="ok")
        if parts[:1] == ["api"]:
            group, version, rest = "", parts[1], parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return web.Response(status=404, text="404 page not found")
        namespace: str | None = None
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        resource = self.store.resources.get((group, version, rest[0]))
        if resource is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        name = rest[1] if len(rest) > 1 else None
        subresource = rest[2] if len(rest) > 2 else ""
        if resource.plural == "selfsubjectaccessreviews":
            wanted = (await request.json())["spec"]["resourceAttributes"]
            plural = "/".join(filter(None, (wanted["resource"], wanted.get("subresource"))))
            asked = (wanted["verb"], wanted["group"], plural, wanted.get("namespace") or None)
            return {"status": {"allowed": self._may(*asked)}}
        if name is None:
            return await self._collection(request, resource, namespace)
        return await self._object(request, resource, namespace or "", name, subresource)

    async def _collection(
        self, request: web.Request, resource: Resource, namespace: str | None
    ) -> Document | web.StreamResponse:
        query = request.query
        if request.method == "POST":
            self._allow("create", resource, namespace)
            document = await request.json()
            self._allow_owners(document, namespace)
            return self.store.create(
                resource, namespace or "", document, query.get("fieldManager", ""), dry="dryRun" in query
            )
        if request.method == "DELETE":
            self._allow("deletecollection", resource, namespace)
            options = await request.json() if request.can_read_body else {}
            for document in self.store.all(resource, namespace):
                if matches(document, query.get("labelSelector", ""), query.get("fieldSelector", "")):
                    metadata = document["metadata"]
                    self.store.delete(resource, metadata.get("namespace", ""), metadata["name"], options)
            return {"kind": "Status", "status": "Success"}
        if "watch" in query:
            self._allow("watch", resource, namespace)
            return await self._watch(request, resource, namespace)
        self._allow("list", resource, namespace)
        return self._list(request, resource, namespace)

    def _list(self, request: web.Request, resource: Resource, namespace: str | None) -> Document:
        query = request.query
        limit = int(query.get("limit", "0"))
        start, revision = 0, self.store.revision
        if token := query.get("continue", ""):
            told = json.loads(base64.b64decode(token))
            start, revision = told["start"], told["rv"]
            if revision < self.store.oldest or (resource, revision) not in self.store.snapshots:
                raise ApiError(
                    410, "Expired", "The provided continue parameter is too old to display a consistent list"
                )
            found = self.store.snapshots[resource, revision]
        else:
            found = [
                document
                for document in self.store.all(resource, namespace)
                if matches(document, query.get("labelSelector", ""), query.get("fieldSelector", ""))
            ]
        metadata: Document = {"resourceVersion": str(revision)}
        page = found[start:]
        if limit and len(page) > limit:
            page = page[:limit]
            self.store.snapshots[resource, revision] = found
            rest = json.dumps({"rv": revision, "start": start + limit}).encode()
            metadata["continue"] = base64.b64encode(rest).decode()
        return {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata, "items": page}

    async def _object(
        self, request: web.Request, resource: Resource, namespace: str, name: str, subresource: str
    ) -> Document | web.StreamResponse:
        store, query, method = self.store, request.query, request.method
        where = namespace or None
        if method == "GET":
            self._allow("get", resource, where, subresource)
            if subresource in ("portforward", "exec") and request.headers.get("Accept") != "*/*":
                raise ApiError(406, "NotAcceptable", "only the following media types are accepted: */*")
            if subresource == "portforward":
                store.need(resource, name, namespace)
                return await self._forward(request, (namespace, name, int(query["ports"])))
            if subresource == "exec":
                return await self._execute(request, name)
            if subresource == "log":
                store.need(resource, name, namespace)
                return await self._read_log(request, (namespace, name, query.get("container", "")))
            return store.need(resource, name, namespace)
        manager = query.get("fieldManager", "unknown")
        if method == "DELETE":
            self._allow("delete", resource, where)
            return store.delete(resource, namespace, name, await request.json() if request.can_read_body else {})
        if method == "PUT":
            self._allow("update", resource, where, subresource)
            return store.update(resource, namespace, name, await request.json(), manager)
        self._allow("patch", resource, where, subresource)
        change = await request.json()
        kind = request.content_type
        if kind == "application/apply-patch+yaml":
            if store.find(resource, name, namespace) is None:
                self._allow("create", resource, where)
            self._allow_owners(change, where)
            return store.apply(
                resource, namespace, name, change, manager, force=query.get("force") == "true", dry="dryRun" in query
            )
        how = kind.removeprefix("application/").removesuffix("-patch+json").removesuffix("-merge")
        return store.patch(resource, namespace, name, change, how, manager, subresource=subresource)

    # -- streams ------------------------------------------------------------------------------------------------------

    async def _watch(self, request: web.Request, resource: Resource, namespace: str | None) -> web.StreamResponse:
        query, store = request.query, self.store
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        asked = query.get("resourceVersion", "")
        position = int(asked) if asked not in ("", "0") else store.revision
        gone = ApiError(410, "Expired", f"too old resource version: {position} ({store.oldest})")
        if position < store.oldest and not self.gone_in_stream:
            raise gone
        if position > store.revision:
            raise ApiError(
                504,
                "Timeout",
                f"Timeout: Too large resource version: {position}, current: {store.revision}",
                causes=[{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                retryAfterSeconds=1,
            )
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if position < store.oldest:
            await response.write(_line("ERROR", gone.status))
            return response
        if asked in ("", "0"):
            for document in store.all(resource, namespace):
                if matches(document, labels, fields):
                    await response.write(_line("ADDED", document))
        stream = Stream(request, resource)
        self.streams.add(stream)
        await self._tell()
        try:
            async with asyncio.timeout(float(query.get("timeoutSeconds", "1800"))):
                while True:
                    if position < store.oldest - 1:  # it fell behind, and the history that it needed is gone
                        await response.write(_line("ERROR", gone.status))
                        return response
                    news = self._news(resource, namespace, labels, fields, position)
                    position = max(position, store.revision)
                    stream.changed.clear()
                    for line in news:
                        if stream.cut_line:
                            await response.write(line[: len(line) // 2])
                            return self._abort(request)
                        await response.write(line)
                    stream.position = position
                    while stream.actions:
                        action = stream.actions.popleft()
                        if action == "cut":
                            return self._abort(request)
                        if action == "end":
                            return response
                        if action == "gone":
                            await response.write(_line("ERROR", ApiError(410, "Expired", "too old").status))
                            return response
                        if action == "upset":
                            await response.write(_line("ERROR", ApiError(500, "InternalError", "upset").status))
                            return response
                        if action == "bookmark" and "allowWatchBookmarks" in query:
                            metadata = {"resourceVersion": str(position), "creationTimestamp": None}
                            mark = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
                            await response.write(_line("BOOKMARK", mark))
                    await stream.changed.wait()
        except TimeoutError:
            return response
        except ConnectionError:
            return response
        finally:
            self.streams.discard(stream)
            await self._tell()

    def _news(self, resource: Resource, namespace: str | None, labels: str, fields: str, position: int) -> list[bytes]:
        lines = []
        entries: list[Entry] = []
        for entry in reversed(self.store.history.get(resource, [])):
            if entry.revision <= position:
                break
            entries.append(entry)
        for entry in reversed(entries):
            before = entry.before if entry.before and matches(entry.before, labels, fields) else None
            after = entry.after if entry.after and matches(entry.after, labels, fields) else None
            told = after or before
            if told is None or (namespace is not None and told["metadata"].get("namespace") != namespace):
                continue
            kind = "MODIFIED" if before and after else "ADDED" if after else "DELETED"
            if kind == "DELETED" and entry.after is not None:
                version = str(entry.revision)
                told = {**told, "metadata": {**told["metadata"], "resourceVersion": version}}
            lines.append(_line(kind, told))
        return lines

    async def _tell(self) -> None:
        async with self._opened:
            self._opened.notify_all()

    async def _forward(self, request: web.Request, key: tuple[str, str, int]) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        port = key[2].to_bytes(2, "little")
        await socket.send_bytes(b"\0" + port)
        await socket.send_bytes(b"\1" + port)
        if key not in self.ports:
            await socket.send_bytes(b"\1" + f"error forwarding port {key[2]}: connection refused".encode())
            await socket.close()
            return socket
        reader, writer = await asyncio.open_connection(*self.ports[key])

        async def back() -> None:
            while data := await reader.read(65536):
                await socket.send_bytes(b"\0" + data)
            await socket.close()

        task = asyncio.create_task(back())
        try:
            async for message in socket:
                if message.type == WSMsgType.BINARY and message.data[0] == 0:
                    writer.write(message.data[1:])
                    await writer.drain()
        finally:
            writer.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await writer.wait_closed()
        return socket

    async def _execute(self, request: web.Request, pod: str) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=(self.exec_protocol,))
        await socket.prepare(request)
        stdin = bytearray()
        if request.query.get("stdin") == "true":
            async for message in socket:
                if message.data[0] == 255:
                    break
                stdin += message.data[1:]
        code, out, err = self.on_exec(pod, request.query.getall("command"), bytes(stdin))
        for channel, data in ((b"\1", out), (b"\2", err)):
            for at in range(0, len(data), 30000):
                await socket.send_bytes(channel + data[at : at + 30000])
        status: Document = {"metadata": {}, "status": "Success"}
        if code:
            causes = [{"reason": "ExitCode", "message": str(code)}]
            status = {
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": f"command terminated with non-zero exit code: exit status {code}",
                "details": {"causes": causes},
            }
        await socket.send_bytes(b"\3" + msgspec.json.encode(status))
        await socket.close()
        return socket

    async def _read_log(self, request: web.Request, key: tuple[str, str, str]) -> web.StreamResponse:
        file = self.logs.get(key)
        if file is None:
            _, pod, container = key
            raise ApiError(
                400, "BadRequest", f'container "{container}" in pod "{pod}" is waiting to start: ContainerCreating'
            )
        return await self.logs.answer(request, file)


def matches(document: Document, labels: str, fields: str) -> bool:
    """Whether an object is what the selectors want."""
    given = document["metadata"].get("labels") or {}
    return all(_label_matches(given, term) for term in _terms(labels)) and all(
        _field_matches(document, term) for term in _terms(fields)
    )


def _terms(selector: str) -> list[str]:
    return [term.strip() for term in re.split(r",(?![^(]*\))", selector) if term.strip()]


def _label_matches(labels: Document, term: str) -> bool:
    if found := re.fullmatch(r"(\S+) (in|notin) \(([^)]*)\)", term):
        key, how, values = found.groups()
        is_in = labels.get(key) in [value.strip() for value in values.split(",")]
        return is_in if how == "in" else not is_in
    if found := re.fullmatch(r"([^!=]+)(==|=|!=)(.*)", term):
        key, how, value = found.groups()
        return bool(labels.get(key) != value) if how == "!=" else bool(labels.get(key) == value)
    return term[1:] not in labels if term.startswith("!") else term in labels


def _field_matches(document: Document, term: str) -> bool:
    found = re.fullmatch(r"([^!=]+)(==|=|!=)(.*)", term)
    if found is None:
        raise ApiError(400, "BadRequest", f'invalid field selector "{term}"')
    path, how, value = found.groups()
    at: Any = document
    for part in path.split("."):
        at = at.get(part, "") if isinstance(at, dict) else ""
    return bool(at != value) if how == "!=" else bool(at == value)


def _line(kind: str, document: Document) -> bytes:
    return msgspec.json.encode({"type": kind, "object": document}) + b"\n"
