"""What the namespace of each project needs before anything of ours runs in it.

ServiceAccount    of tasks: it has no token and no rights
NetworkPolicies   tasks hear from tasks of their project alone; TensorBoards from the control plane. Both may call whom
                  they like: data, package indexes, the services of other people. Each project has its own, as several
                  may share a namespace
"""

import asyncio
import contextlib
from typing import Final

import structlog

from services.scheduler.cloud.kubernetes.board_manifests import PORT as BOARD_PORT
from services.scheduler.cloud.kubernetes.identity import BOARD_WORK, ROOM_NAME, TRAINING_WORK, WORK
from services.scheduler.cloud.kubernetes.manifests import SERVICE_ACCOUNT
from shared.errors import Unavailable
from shared.kube.access import Right
from shared.kube.client import Cluster
from shared.kube.errors import FieldConflict, Foreign, MissingRight
from shared.kube.manifest import Manifest
from shared.kube.names import INSTALLATION, PROJECT, ROOM, label_value, object_name
from shared.kube.network_policies import ingress_policy, pods_here, pods_of
from shared.kube.objects import Partial
from shared.kube.projects import Projects
from shared.kube.resources import NAMESPACES, NETWORK_POLICIES, SERVICE_ACCOUNTS
from shared.kube.rights import rights_to
from shared.kube.settings import ProjectSettings

Document = dict[str, object]

_log = structlog.get_logger(__name__)

_HOLDS_SECONDS: Final = 600.0
"""So long it is taken for granted that nobody has removed what was there."""


def account_manifest(namespace: str) -> Document:
    """The ServiceAccount of tasks."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": SERVICE_ACCOUNT, "namespace": namespace, "labels": {ROOM: ROOM_NAME}},
        "automountServiceAccountToken": False,
    }


def policy_manifests(project: str, namespace: str, installation: str, *, control: str | None) -> tuple[Document, ...]:
    """Who may call tasks and TensorBoards; probes of the kubelet and forwarded ports always get through.

    Args:
        control: the namespace whose pods may reach TensorBoards; "": nobody's; None: everybody may.
    """
    ours = {ROOM: ROOM_NAME, INSTALLATION: label_value(installation), PROJECT: project}
    tasks, boards = {**ours, WORK: TRAINING_WORK}, {**ours, WORK: BOARD_WORK}
    to_boards: list[Document] = []
    if control is None:
        to_boards = [{"ports": _BOARD_PORTS}]
    elif control:
        to_boards = [{"from": [pods_of(control)], "ports": _BOARD_PORTS}]
    return (
        _policy(
            object_name(installation, "elearn", "tasks", project), namespace, tasks, [{"from": [pods_here(tasks)]}]
        ),
        _policy(object_name(installation, "elearn", "boards", project), namespace, boards, to_boards),
    )


_BOARD_PORTS: Final = [{"protocol": "TCP", "port": BOARD_PORT}]


def _policy(name: str, namespace: str, selects: dict[str, str], ingress: list[Document]) -> Document:
    return ingress_policy(name, namespace, room=ROOM_NAME, selects=selects, ingress=ingress)


class Furniture:
    """Puts it there.

    Args:
        boards_for_all: TensorBoards are reached from outside the cluster by its own addresses, so that no namespace
            can be named that they may be reached from.
    """

    def __init__(
        self, cluster: Cluster, settings: ProjectSettings, projects: Projects, *, boards_for_all: bool = False
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._projects = projects
        self._boards_for_all = boards_for_all
        self._furnished: dict[str, dict[str, float]] = {}
        self._furnishing = asyncio.Lock()
        self._told: set[str] = set()

    def rights(self) -> list[Right]:
        """What RBAC has to let us do."""
        places = self._settings.places
        needed = [
            *rights_to("get create patch", SERVICE_ACCOUNTS, places=places),
            *rights_to("create patch", NETWORK_POLICIES, places=places),
        ]
        if self._settings.kubernetes_create_namespaces:
            needed += rights_to("get create patch", NAMESPACES)
        return needed

    async def ensure(self, project: str) -> str:
        """The namespace of a project, which is there and furnished afterwards.

        Raises:
            Forbidden: there is none, and we may not make it.
            Unavailable: tasks would have no ServiceAccount, and we may not make one.
            NamespaceMissing, Terminating: it is not there (any more): tell :meth:`forget`, and try again.
        """
        if not self._projects.knows(self._projects.namespace(project)):
            self._furnished.pop(self._projects.namespace(project), None)
        namespace = await self._projects.ensure(project)
        loop = asyncio.get_running_loop()
        if self._furnished.get(namespace, {}).get(project, 0.0) > loop.time():
            return namespace
        async with self._furnishing:
            if self._furnished.get(namespace, {}).get(project, 0.0) <= loop.time():
                await self._make_account(namespace)
                await self._make_policies(project, namespace)
                self._furnished.setdefault(namespace, {})[project] = loop.time() + _HOLDS_SECONDS
        return namespace

    def forget(self, namespace: str) -> None:
        """Something said that a namespace is not there (any more): look again the next time."""
        self._furnished.pop(namespace, None)
        self._projects.forget(namespace)

    async def _make_account(self, namespace: str) -> None:
        try:
            with contextlib.suppress(Foreign, FieldConflict):  # another elearn's or an operator's does as well
                await self._cluster.apply(account_manifest(namespace))
        except MissingRight as error:
            if await self._has_account(namespace):
                return
            raise Unavailable(
                f"tasks need a ServiceAccount {SERVICE_ACCOUNT} in namespace {namespace}: make one, or let elearn do it"
                f" ({error.detail})",
                retry=30,
            ) from error

    async def _has_account(self, namespace: str) -> bool:
        """Somebody has made one; where we may not even look, tasks will tell."""
        try:
            found = await self._cluster.get(SERVICE_ACCOUNTS, SERVICE_ACCOUNT, Partial, namespace=namespace)
        except MissingRight as error:
            self._tell_once("whether tasks have a ServiceAccount can't be seen", namespace, error)
            return True
        return found is not None

    async def _make_policies(self, project: str, namespace: str) -> None:
        control = None if self._boards_for_all and not self._cluster.home else self._cluster.home
        manifests: tuple[Manifest, ...] = policy_manifests(
            project, namespace, self._cluster.installation, control=control
        )
        for manifest in manifests:
            try:
                await self._cluster.apply(manifest)
            except (MissingRight, FieldConflict) as error:
                self._tell_once("who may call tasks is not narrowed down by a NetworkPolicy", namespace, error)

    def _tell_once(self, words: str, namespace: str, error: MissingRight | FieldConflict) -> None:
        if f"{words} {namespace}" not in self._told:
            self._told.add(f"{words} {namespace}")
            _log.warning(words, namespace=namespace, error=error.detail)
