"""The Kubernetes job cloud on an emulated cluster, whose save jobs are the real code."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from services.registry.cloud.kubernetes import JobOptions, KubernetesJobs, agent, work
from services.registry.cloud.kubernetes.manifests import AGENT_MODULE, WORK_MODULE
from shared.contracts.datastore import ClaimVolume
from shared.kube.client import Cluster
from shared.kube.resources import NAMESPACES, PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES
from shared.kube.settings import ProjectSettings
from tests.support.kube_kubelet import Kubelet, PodServer, emulated
from tests.support.kube_life import ClusterLife
from tests.support.kube_rights import ChartRights

NAMESPACE = "elearn-default"
SOURCE = ClaimVolume(claim_name="runs", namespace=NAMESPACE)

Made = tuple[KubernetesJobs, PodServer, ClusterLife, Kubelet]


def jobs_on(cluster: Cluster, store: Path, **options: Any) -> KubernetesJobs:
    """A driver whose model store is a folder of the nodes."""
    chosen = msgspec.structs.replace(JobOptions(kubernetes_model_store=f"host:{store}"), **options)
    return KubernetesJobs(cluster, ProjectSettings(), chosen, patience=5.0, look_every=0.2, agent_patience=3.0)


def work_here(environ: Mapping[str, str], real: Callable[[str], str]) -> tuple[int, str]:
    """What a save job's pod does, with its claims where they are here."""
    asked = msgspec.json.decode(environ[work.VARIABLE], type=work.Work)
    if isinstance(asked, work.Save):
        job = msgspec.structs.replace(asked.job, volume=real(asked.job.volume), store=real(asked.job.store))
        asked = work.Save(job=job)
    else:
        asked = msgspec.structs.replace(asked, store=real(asked.store))
    return work.outcome({work.VARIABLE: msgspec.json.encode(asked).decode()})


@contextlib.asynccontextmanager
async def kubernetes_jobs(folder: Path, data: Path, **options: Any) -> AsyncIterator[Made]:
    """A driver and its cluster; the claim ``runs`` holds what lies in ``data``."""
    async with emulated(folder / "claims") as (server, life, kubelet, cluster):
        server.rights = ChartRights("registry")
        kubelet.run[WORK_MODULE] = work_here
        kubelet.serve[AGENT_MODULE] = lambda root: agent.handler(str(root))
        server.store.add(NAMESPACES, {"metadata": {"name": NAMESPACE}, "status": {"phase": "Active"}})
        server.store.add(PERSISTENT_VOLUMES, {"metadata": {"name": "runs"}, "spec": {"hostPath": {"path": str(data)}}})
        claim = {"metadata": {"name": "runs"}, "spec": {"volumeName": "runs"}}
        server.store.add(PERSISTENT_VOLUME_CLAIMS, claim, NAMESPACE)
        yield jobs_on(cluster, folder / "models", **options), server, life, kubelet
