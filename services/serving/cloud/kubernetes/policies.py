"""Who may call model servers, which ask nobody for a token: a NetworkPolicy in the namespace of each project.

Whoever else shall reach them is let in by a policy of the operator's: policies add up.
"""

from collections.abc import Sequence
from typing import Final

import structlog

from services.serving.cloud.kubernetes.manifests import GRPC, REST, ROOM_NAME
from services.serving.cloud.kubernetes.options import ServingOptions
from shared.kube.access import Right
from shared.kube.client import Cluster
from shared.kube.errors import FieldConflict, MissingRight
from shared.kube.names import INSTALLATION, ROOM, label_value, object_name
from shared.kube.network_policies import ingress_policy, pods_here, pods_of
from shared.kube.resources import NETWORK_POLICIES
from shared.kube.rights import rights_to

Document = dict[str, object]

_log = structlog.get_logger(__name__)

_PORTS: Final = [{"protocol": "TCP", "port": GRPC}, {"protocol": "TCP", "port": REST}]


def policy_manifest(namespace: str, installation: str, *, control: str | None) -> Document:
    """Who may call.

    Args:
        control: the namespace whose pods may, beside those of the project; "": no other's; None: everybody may.
    """
    rule: Document = {"ports": _PORTS}
    if control is not None:
        rule["from"] = [pods_here(), *([pods_of(control)] if control else [])]
    selects = {ROOM: ROOM_NAME, INSTALLATION: label_value(installation)}
    name = object_name(installation, "elearn", "servings")
    return ingress_policy(name, namespace, room=ROOM_NAME, selects=selects, ingress=[rule])


class Policies:
    """Puts it there."""

    def __init__(self, cluster: Cluster, options: ServingOptions) -> None:
        self._cluster = cluster
        self._options = options
        self._told: set[str] = set()

    def rights(self, places: Sequence[str | None]) -> list[Right]:
        """What RBAC has to let us do."""
        return rights_to("create patch", NETWORK_POLICIES, places=places)

    async def ensure(self, namespace: str) -> None:
        """Narrow down who may call servings in a namespace; without the right to, they are served all the same."""
        home = self._cluster.home
        control = None if self._options.open_to_all(home) else home
        try:
            await self._cluster.apply(policy_manifest(namespace, self._cluster.installation, control=control))
        except (MissingRight, FieldConflict) as error:
            if namespace not in self._told:
                self._told.add(namespace)
                words = "who may call servings is not narrowed down by a NetworkPolicy"
                _log.warning(words, namespace=namespace, error=error.detail)
