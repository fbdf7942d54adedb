"""Ports of this machine that lead to the replicas of servings, for an elearn that runs outside the cluster."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Final, NamedTuple, Self

from services.serving.cloud.kubernetes.manifests import GRPC, REST
from shared.kube.client import Cluster
from shared.kube.forwarding import ReadyPods, forwarded
from shared.kube.objects import Pod

_LOWEST: Final = 18000
_PORTS: Final = 10000
_POD_SECONDS: Final = 5.0


class LocalPorts(NamedTuple):
    """Where a serving is reached on loopback."""

    host: str
    grpc: int
    rest: int


class Wanted(NamedTuple):
    """A serving that has an endpoint.

    Attributes:
        what: its name, for errors.
        pods: that may be its replicas.
    """

    what: str
    namespace: str
    pods: Iterable[Pod]


class _Open(NamedTuple):
    stack: AsyncExitStack
    pods: ReadyPods
    ports: LocalPorts


class Forwards:
    """Listens for every serving, until the context ends."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._open: dict[str, _Open] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.follow({})

    @property
    def ports(self) -> Mapping[str, LocalPorts]:
        """Where each is reached, by uid."""
        return {uid: each.ports for uid, each in self._open.items()}

    async def follow(self, wanted: Mapping[str, Wanted]) -> None:
        """Listen for these, by uid, and for no others; new connections go to the pods that are ready."""
        for uid in [uid for uid in self._open if uid not in wanted]:
            await self._open.pop(uid).stack.aclose()
        for uid, serving in wanted.items():
            if uid not in self._open:
                self._open[uid] = await self._listen(uid, serving)
            self._open[uid].pods.show(serving.pods)

    async def _listen(self, uid: str, serving: Wanted) -> _Open:
        pods = ReadyPods(f"serving {serving.what}", patience=_POD_SECONDS)
        async with AsyncExitStack() as stack:
            bound = []
            for port in (GRPC, REST):
                address = forwarded(self._cluster, pods, port, namespace=serving.namespace, prefer=preferred(uid, port))
                bound.append(await stack.enter_async_context(address))
            (host, grpc), (_, rest) = bound
            return _Open(stack=stack.pop_all(), pods=pods, ports=LocalPorts(host=host, grpc=grpc, rest=rest))


def preferred(uid: str, port: int) -> tuple[int, ...]:
    """Local ports for a port of a serving, always the same: clients find it again after a restart of elearn."""
    digest = hashlib.sha256(f"{uid}:{port}".encode()).digest()
    return tuple(_LOWEST + int.from_bytes(digest[at : at + 4], "big") % _PORTS for at in (0, 4, 8))
