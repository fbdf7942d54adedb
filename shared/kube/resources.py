"""The kinds that elearn works with, and where the API keeps them. Pure."""

from typing import Final
from urllib.parse import quote

import msgspec


class Resource(msgspec.Struct, frozen=True):
    """A kind of object.

    Attributes:
        group: API group, "" for the core.
        version: ``v1``, ``v2``.
        kind: ``Pod``.
        plural: ``pods``.
        namespaced: lies in a namespace.
    """

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str = "") -> str:
        """The URL's path; without a namespace, a namespaced kind in all of them."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)


NAMESPACES: Final = Resource("", "v1", "Namespace", "namespaces", namespaced=False)
NODES: Final = Resource("", "v1", "Node", "nodes", namespaced=False)
PERSISTENT_VOLUMES: Final = Resource("", "v1", "PersistentVolume", "persistentvolumes", namespaced=False)
CONFIG_MAPS: Final = Resource("", "v1", "ConfigMap", "configmaps")
EVENTS: Final = Resource("", "v1", "Event", "events")
LIMIT_RANGES: Final = Resource("", "v1", "LimitRange", "limitranges")
PERSISTENT_VOLUME_CLAIMS: Final = Resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
PODS: Final = Resource("", "v1", "Pod", "pods")
RESOURCE_QUOTAS: Final = Resource("", "v1", "ResourceQuota", "resourcequotas")
SECRETS: Final = Resource("", "v1", "Secret", "secrets")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "ServiceAccount", "serviceaccounts")
SERVICES: Final = Resource("", "v1", "Service", "services")
DEPLOYMENTS: Final = Resource("apps", "v1", "Deployment", "deployments")
REPLICA_SETS: Final = Resource("apps", "v1", "ReplicaSet", "replicasets")
STATEFUL_SETS: Final = Resource("apps", "v1", "StatefulSet", "statefulsets")
SELF_ACCESS_REVIEWS: Final = Resource(
    "authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", namespaced=False
)
AUTOSCALERS: Final = Resource("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
JOBS: Final = Resource("batch", "v1", "Job", "jobs")
LEASES: Final = Resource("coordination.k8s.io", "v1", "Lease", "leases")
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
NETWORK_POLICIES: Final = Resource("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
DISRUPTION_BUDGETS: Final = Resource("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
CLUSTER_ROLES: Final = Resource("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", namespaced=False)
CLUSTER_ROLE_BINDINGS: Final = Resource(
    "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False
)
ROLES: Final = Resource("rbac.authorization.k8s.io", "v1", "Role", "roles")
ROLE_BINDINGS: Final = Resource("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
PRIORITY_CLASSES: Final = Resource("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", namespaced=False)
CSI_DRIVERS: Final = Resource("storage.k8s.io", "v1", "CSIDriver", "csidrivers", namespaced=False)
STORAGE_CLASSES: Final = Resource("storage.k8s.io", "v1", "StorageClass", "storageclasses", namespaced=False)

ALL: Final[tuple[Resource, ...]] = tuple(value for value in tuple(globals().values()) if isinstance(value, Resource))

_BY_KIND: Final = {(resource.api_version, resource.kind): resource for resource in ALL}


def resource_of(api_version: str, kind: str) -> Resource:
    """The resource of a manifest.

    Raises:
        ValueError: elearn does not work with that kind.
    """
    try:
        return _BY_KIND[api_version, kind]
    except KeyError:
        raise ValueError(f"{kind} of {api_version} is not among the kinds that elearn works with") from None
