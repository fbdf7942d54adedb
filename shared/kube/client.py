"""A cluster's API: objects in and out as plain documents, with the retries, time-outs and labels that all need."""

import os
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

import aiohttp
import msgspec
import structlog

from shared.errors import ElearnError, NotFound
from shared.kube.backoff import Backoff
from shared.kube.connection import Connection, Query
from shared.kube.errors import Asked, Expired, FieldConflict, Foreign
from shared.kube.kubeconfig import Access, find_access
from shared.kube.manifest import Head, Manifest, Propagation, delete_options, head_of, marked
from shared.kube.names import INSTALLATION, Selector, field_manager, label_value, selector_text
from shared.kube.objects import HasMetadata, Metadata, Partial
from shared.kube.resources import PODS, Resource
from shared.kube.sending import Sender, decode
from shared.kube.settings import KubernetesSettings

_log = structlog.get_logger(__name__)

S = TypeVar("S", bound=HasMetadata)
T = TypeVar("T")

PAGE: Final = 500
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_PATCHES: Final = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
}


class _Page(msgspec.Struct, frozen=True):
    class _About(msgspec.Struct, frozen=True, rename="camel"):
        resource_version: str = ""
        continue_: str = msgspec.field(name="continue", default="")

    metadata: _About
    items: list[msgspec.Raw] | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a list: undecoded objects, the list's resourceVersion, and where it goes on ("" at its end)."""

    items: list[msgspec.Raw]
    version: str
    token: str


class Cluster:
    """One cluster, as one installation of elearn sees it.

    Every object that it sends carries the installation's label; lists, watches and deletions by label are narrowed
    to it, and an object of somebody else is neither overwritten nor deleted.

        async with Cluster(settings) as cluster:
            service = await cluster.apply(manifest)

    What may safely be repeated (everything but ``create``) is repeated on 429, 5xx and broken connections, with
    growing pauses, until ``kubernetes_patience`` is used up; then :class:`Unavailable` is raised.

    Args:
        settings: where the cluster is and how long to wait for it.
        find: says how to reach it instead of the settings.
        first_pause, longest_pause: seconds of the pauses between tries.
        chance: where jitter comes from.
    """

    def __init__(
        self,
        settings: KubernetesSettings | None = None,
        *,
        find: Callable[[], Access] | None = None,
        first_pause: float = _FIRST_PAUSE,
        longest_pause: float = _LONGEST_PAUSE,
        chance: random.Random | None = None,
    ) -> None:
        self._settings = settings or KubernetesSettings()
        self.chance = chance or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._connection = Connection(
            find or partial(find_access, self._settings, os.environ),
            timeout=self._settings.kubernetes_timeout,
            at_once=self._settings.kubernetes_requests,
        )
        pauses = partial(Backoff, first=first_pause, longest=longest_pause, chance=self.chance)
        self.send = Sender(self._connection, pauses, patience=self._settings.kubernetes_patience)
        self.installation = self._settings.kubernetes_installation
        self.manager = field_manager(self.installation)

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every connection, watches included."""
        await self._connection.close()

    @property
    def namespace(self) -> str:
        """The namespace to work in, from the settings, the kubeconfig's context or the pod."""
        return self._connection.access.namespace

    @property
    def home(self) -> str:
        """The namespace of the pod that we run in and reach the cluster from; "" outside it."""
        return self._connection.access.home

    @property
    def server(self) -> str:
        """The API server's URL."""
        return self._connection.access.server

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, resource: Resource, name: str, read: type[S], *, namespace: str | None = None) -> S | None:
        """One object, or None where there is none of that name.

        Raises:
            NamespaceMissing, MissingRight, Unavailable: see :mod:`shared.kube.errors`.
        """
        where = self._where(resource, namespace)
        asked = self._asked("get", resource, where, name)
        try:
            answer = await self.send("GET", resource.path(where, name), asked)
        except NotFound:
            return None
        return decode(answer.body, read, asked)

    async def list(
        self,
        resource: Resource,
        read: type[S],
        *,
        namespace: str | None = None,
        everywhere: bool = False,
        labels: Selector | None = None,
        fields: Selector | None = None,
        ours: bool = True,
    ) -> list[S]:
        """All objects that match, fetched in pages.

        Args:
            everywhere: in all namespaces.
            labels: wanted labels; the installation's is added while ``ours``.
            ours: only this installation's objects. Nodes and foreign pods are nobody's.
        """
        query = self.narrowed(labels, fields, ours=ours)
        where = None if everywhere else self._where(resource, namespace)
        asked = self._asked("list", resource, where, None)
        found: list[S] = []
        limit, token = PAGE, ""
        while True:
            try:
                page = await self.page(resource, where, query, limit=limit, token=token)
            except Expired:
                if not token:
                    raise
                found, limit, token = [], 0, ""  # the pages' snapshot is gone: all at once, then
                continue
            found += [decode(item, read, asked) for item in page.items]
            token = page.token
            if not token:
                return found

    async def page(
        self,
        resource: Resource,
        namespace: str | None,
        query: Query,
        *,
        limit: int,
        token: str,
        patience: float | None = None,
    ) -> Page:
        """One page of a list.

        Args:
            limit: objects at the most; 0: everything.
            token: where the page before ended.
            patience: seconds of repeating, where not the settings'.

        Raises:
            Expired: the token is too old: begin again.
        """
        asked = self._asked("list", resource, namespace, None)
        parts = dict(query)
        if limit:
            parts["limit"] = str(limit)
        if token:
            parts["continue"] = token
        answer = await self.send("GET", resource.path(namespace), asked, query=parts, patience=patience)
        page = decode(answer.body, _Page, asked)
        return Page(items=page.items or [], version=page.metadata.resource_version, token=page.metadata.continue_)

    def narrowed(self, labels: Selector | None, fields: Selector | None, *, ours: bool) -> dict[str, str]:
        """The query of a list or a watch."""
        wanted = dict(labels or {})
        if ours:
            wanted[INSTALLATION] = label_value(self.installation)
        query = {}
        if wanted:
            query["labelSelector"] = selector_text(wanted)
        if fields:
            query["fieldSelector"] = selector_text(fields)
        return query

    def watching(
        self, resource: Resource, namespace: str | None, query: Query, *, version: str, seconds: int, idle: float
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """One watch request, as chunks of its lines; :func:`shared.kube.watch.watch` makes it endless."""
        parts = {
            **query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        asked = self._asked("watch", resource, namespace, None)
        return self._connection.stream(resource.path(namespace), asked, query=parts, idle=idle)

    def logs(
        self,
        pod: str,
        *,
        namespace: str | None = None,
        container: str = "",
        follow: bool = False,
        previous: bool = False,
        tail: int | None = None,
        since: str = "",
        limit_bytes: int | None = None,
        timestamps: bool = False,
        idle: float | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A container's log, as chunks of bytes.

        Args:
            since: only lines from this instant on (RFC 3339); the API counts whole seconds.
            tail: only that many last lines.
            idle: seconds of silence after which a followed log is given up; None: never.

        Raises:
            NotFound: there is no such pod.
            Invalid: the container has not started yet, or its log is gone.
            Unreachable: also in the middle, where the connection was cut before the log's end.
        """
        where = namespace or self.namespace
        query = {
            "container": container,
            "follow": "true" if follow else "",
            "previous": "true" if previous else "",
            "tailLines": "" if tail is None else str(tail),
            "sinceTime": since,
            "limitBytes": "" if limit_bytes is None else str(limit_bytes),
            "timestamps": "true" if timestamps else "",
        }
        asked = Asked(verb="read the log of", plural="pods", namespace=where, name=pod)
        path = PODS.path(where, pod, "log")
        return self._connection.stream(path, asked, query={k: v for k, v in query.items() if v}, idle=idle)

    def socket(
        self,
        pod: str,
        what: str,
        query: Sequence[tuple[str, str]],
        protocols: tuple[str, ...],
        *,
        namespace: str | None,
    ) -> AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]:
        """A WebSocket into a pod; see :mod:`shared.kube.pods`."""
        where = namespace or self.namespace
        asked = Asked(verb=what, plural="pods", namespace=where, name=pod)
        return self._connection.socket(PODS.path(where, pod, what), asked, query=query, protocols=protocols)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def apply(
        self, manifest: Manifest, *, force: bool = False, dry_run: bool = False, subresource: str = ""
    ) -> Metadata:
        """Make an object be as the manifest says, by server-side apply; fields that it leaves out are left alone.

        Fields that an earlier version of us wrote in another way are taken over; those of anybody else only with
        ``force``, and never an object of another installation.

        Returns:
            The object's metadata as they are now.

        Raises:
            FieldConflict: fields belong to others; each is named with its owner.
            Foreign: the object belongs to another installation.
            Invalid: each refused field is named, unknown and immutable ones included.
            QuotaExceeded, PolicyRefused, MissingRight, NamespaceMissing, Terminating: see their docstrings.
        """
        head = head_of(manifest, self.namespace)
        asked = self._asked("apply", head.resource, head.namespace, head.name)
        body = msgspec.json.encode(marked(manifest, self.installation))
        query = {"fieldManager": self.manager, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        path = head.resource.path(head.namespace, head.name, subresource)
        send = partial(self.send, "PATCH", path, asked, body=body, content_type="application/apply-patch+yaml")
        try:
            answer = await send(query=query)
        except FieldConflict as error:
            self._refuse_foreign(head, error)
            if not force and any(owner != self.manager for owner in error.owners.values()):
                raise
            answer = await send(query={**query, "force": "true"})
        return decode(answer.body, Partial, asked).metadata

    def _refuse_foreign(self, head: Head, error: FieldConflict) -> None:
        if any(INSTALLATION in field for field in error.owners):
            raise Foreign(
                f"{head.resource.kind} {head.name} belongs to another installation of elearn in this cluster: give this"
                " one an ELEARN_KUBERNETES_INSTALLATION or a namespace of its own"
            ) from None

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Metadata:
        """Make a new object; a manifest with ``generateName`` gets a name.

        It is repeated only where the server certainly did nothing: after 429, or where nothing was sent.

        Raises:
            AlreadyExists: there is one of that name, possibly from a try of ours whose answer was lost.
        """
        head = head_of(manifest, self.namespace)
        asked = self._asked("create", head.resource, head.namespace, head.name or None)
        query = {"fieldManager": self.manager, "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        answer = await self.send(
            "POST",
            head.resource.path(head.namespace),
            asked,
            query=query,
            body=msgspec.json.encode(marked(manifest, self.installation)),
            repeatable=False,
        )
        return decode(answer.body, Partial, asked).metadata

    async def patch(
        self,
        resource: Resource,
        name: str,
        change: Mapping[str, object] | Sequence[Mapping[str, object]],
        *,
        kind: Literal["merge", "strategic", "json"] = "merge",
        namespace: str | None = None,
        subresource: str = "",
    ) -> Metadata:
        """Change some fields of an object.

        Raises:
            NotFound: there is none.
        """
        where = self._where(resource, namespace)
        asked = self._asked("patch", resource, where, name)
        answer = await self.send(
            "PATCH",
            resource.path(where, name, subresource),
            asked,
            query={"fieldManager": self.manager},
            body=msgspec.json.encode(change),
            content_type=_PATCHES[kind],
        )
        return decode(answer.body, Partial, asked).metadata

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        propagation: Propagation = "Background",
        grace: int | None = None,
    ) -> bool:
        """Delete an object of ours; that it is gone already is success.

        Args:
            uid: delete only the object with this uid, as seen in a watch. Without it the object is read first, to
                see that it is ours.
            propagation: what becomes of the objects that it owns.
            grace: seconds that a pod's processes get; None: what the pod says.

        Returns:
            Whether there was anything to delete.

        Raises:
            Foreign: the object is not ours.
        """
        where = self._where(resource, namespace)
        if uid is None:
            found = await self.get(resource, name, Partial, namespace=where)
            if found is None:
                return False
            if found.metadata.labels.get(INSTALLATION) != label_value(self.installation):
                raise Foreign(f"{resource.kind} {name} was not made by this installation of elearn: it is left alone")
            uid = found.metadata.uid
        asked = self._asked("delete", resource, where, name)
        body = {**delete_options(propagation, grace), "preconditions": {"uid": uid}}
        try:
            await self.send("DELETE", resource.path(where, name), asked, body=msgspec.json.encode(body))
        except NotFound:
            return False
        except ElearnError as error:
            if error.status == 409 and "uid" in error.detail.lower():
                return False  # that one is gone; another has its name
            raise
        return True

    # -- what both need ------------------------------------------------------------------------------------------------

    def _where(self, resource: Resource, namespace: str | None) -> str | None:
        return (namespace or self.namespace) if resource.namespaced else None

    def _asked(self, verb: str, resource: Resource, namespace: str | None, name: str | None) -> Asked:
        return Asked(verb=verb, plural=resource.plural, group=resource.group, namespace=namespace, name=name)
