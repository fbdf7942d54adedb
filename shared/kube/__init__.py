"""Kubernetes, for the drivers of every room: a typed client over plain documents, and watches that never end.

Nothing of the local cloud imports this package.
"""

from shared.kube.access import Right, missing_rights, server_version
from shared.kube.changes import Added, Change, Deleted, Identity, Modified, Synced, Told
from shared.kube.client import Cluster
from shared.kube.manifest import Manifest
from shared.kube.merge import Mirror, merged
from shared.kube.resources import Resource
from shared.kube.settings import KubernetesSettings
from shared.kube.watch import Pace, watch

__all__ = [
    "Added",
    "Change",
    "Cluster",
    "Deleted",
    "Identity",
    "KubernetesSettings",
    "Manifest",
    "Mirror",
    "Modified",
    "Pace",
    "Resource",
    "Right",
    "Synced",
    "Told",
    "merged",
    "missing_rights",
    "server_version",
    "watch",
]
