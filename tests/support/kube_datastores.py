"""The Kubernetes storage cloud on an emulated cluster."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from services.datastore.cloud.kubernetes import KubernetesStorage, StorageOptions, agent
from services.datastore.cloud.kubernetes.driver import AGENT_MODULE
from shared.kube.client import Cluster
from shared.kube.settings import ProjectSettings
from tests.support.kube_kubelet import Kubelet, PodServer, emulated
from tests.support.kube_life import ClusterLife
from tests.support.kube_rights import ChartRights

Made = tuple[KubernetesStorage, PodServer, ClusterLife, Kubelet]


def storage_on(cluster: Cluster, root: Path, **options: Any) -> KubernetesStorage:
    """A driver that allows folders of the nodes below ``root``."""
    chosen = msgspec.structs.replace(StorageOptions(kubernetes_host_roots=(str(root),)), **options)
    return KubernetesStorage(cluster, ProjectSettings(), chosen, look_every=5.0, agent_patience=3.0)


@contextlib.asynccontextmanager
async def kubernetes_storage(root: Path, *, binding: bool = True, **options: Any) -> AsyncIterator[Made]:
    """A driver and the cluster that it works on."""
    async with emulated(root / "claims", binding=binding) as (server, life, kubelet, cluster):
        server.rights = ChartRights("datastore")
        kubelet.serve[AGENT_MODULE] = lambda folder: agent.handler(str(folder))
        yield storage_on(cluster, root, **options), server, life, kubelet
