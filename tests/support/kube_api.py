"""The Kubernetes API as paths and verbs: which of them a request asks for, whether it may, and what it is answered.

``kube_server.py`` serves it.
"""

import base64
import json
from collections.abc import Callable

from aiohttp import web

from shared.kube.resources import PODS, Resource, resource_of
from tests.support.kube_errors import ApiError
from tests.support.kube_fields import Document
from tests.support.kube_logs import KubeletLogs
from tests.support.kube_pod_subresources import Execute, execute, forward, read_log
from tests.support.kube_selectors import matches
from tests.support.kube_store import KubeStore
from tests.support.kube_watches import Watches

USER = "system:serviceaccount:elearn:elearn"


class KubeApi:
    """What requests are answered.

    Attributes:
        store: the cluster's state.
        watches: those that are open.
        gone_in_stream: a watch from a forgotten resourceVersion is answered with 200 and a 410 in the stream, as
            the watch cache does, rather than with 410.
        version: what ``/version`` tells.
        logs: of containers.
        ports: (namespace, pod, port): the address that forwarding leads to.
        exec_protocol: what a client that has a command run is answered in.
        on_exec: what becomes of a command.
        rights: whether RBAC allows (verb, API group, plural, namespace or None); not set: it allows everything.
    """

    def __init__(self, store: KubeStore | None = None) -> None:
        self.store = store or KubeStore()
        self.watches = Watches(lambda: self.store)
        self.gone_in_stream = True
        self.version = ("1", "36")
        self.logs = KubeletLogs()
        self.ports: dict[tuple[str, str, int], tuple[str, int]] = {}
        self.exec_protocol = "v5.channel.k8s.io"
        self.on_exec: Execute = lambda *_: (0, b"", b"")
        self.rights: Callable[[str, str, str, str | None], bool] = lambda *_: True
        self._denied: set[tuple[str, str, str | None]] = set()
        self.store.on_change.append(self._wake)
        self.store.on_write.append(self._end_logs)

    def deny(self, verb: str, plural: str, namespace: str | None = None) -> None:
        """RBAC does not allow it; no namespace: nowhere."""
        self._denied.add((verb, plural, namespace))

    def allow(self) -> None:
        """RBAC allows everything again."""
        self._denied.clear()

    def _wake(self) -> None:
        self.watches.wake()

    def _end_logs(self, resource: Resource, before: Document | None, after: Document | None) -> None:
        if resource == PODS and before is not None and after is None:
            self.logs.end(before["metadata"]["namespace"], before["metadata"]["name"])

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
            return await self.watches.serve(request, resource, namespace, gone_in_stream=self.gone_in_stream)
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
                port = int(query["ports"])
                return await forward(request, port, self.ports.get((namespace, name, port)))
            if subresource == "exec":
                return await execute(request, name, self.exec_protocol, self.on_exec)
            if subresource == "log":
                store.need(resource, name, namespace)
                return await read_log(request, self.logs, (namespace, name, query.get("container", "")))
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
