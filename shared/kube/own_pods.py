"""Jobs of elearn's own image: short work on files, in restricted pods without rights to the API. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from shared.kube.quantities import cores
from shared.kube.settings import ProjectSettings
from shared.kube.single_node import neighbours

Document = dict[str, object]

LEAST_LIMITED: Final = "500m"
"""What a pod of ours gets under a CPU limit: with the little that it asks for otherwise it would start in minutes."""


class Mounted(msgspec.Struct, frozen=True, kw_only=True):
    """A claim at a place in a pod; ``single_node``: one node alone can mount it."""

    claim: str
    path: str
    sub_path: str = ""
    read_only: bool = False
    single_node: bool = False


class OwnJob(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a module of ours.

    Attributes:
        mounts: of those that one node alone can mount, the first decides where the pod runs.
        container: what the pod's container is called.
        env: no secrets: whoever may see pods sees them.
        port: where it answers ``GET /healthz`` once it is ready; None where it serves nothing.
        keep_seconds: how long the Job stays after its end.
        grace_seconds: how long it may take to end when it is told to.
        most_seconds: it is ended after so long.
    """

    name: str
    namespace: str
    labels: Mapping[str, str]
    module: str
    mounts: Sequence[Mounted]
    env: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    container: str = "elearn"
    port: int | None = None
    cpu: str = "100m"
    memory: str = "512Mi"
    keep_seconds: int = 3600
    grace_seconds: int = 10
    most_seconds: int | None = None
    replaceable: bool = True


def pod_security(run_as: int) -> Document:
    """A pod's security context under the restricted standard."""
    return {
        "runAsNonRoot": True,
        "runAsUser": run_as,
        "runAsGroup": run_as,
        "fsGroup": run_as,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(*, read_only_root: bool = True) -> Document:
    """A container's security context under the restricted standard."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": read_only_root,
    }


def resources_of(
    settings: ProjectSettings,
    *,
    cpu: str,
    memory: str,
    most_memory: str = "",
    gpus: Mapping[str, str] | None = None,
    least_limited: str = "0",
) -> Document:
    """What a container asks for, and may have at the most.

    Args:
        most_memory: where it may have more than it asks for.
        gpus: their resource, and how many.
        least_limited: so much CPU it asks for where it may have no more than that.
    """
    limits = {"memory": most_memory or memory, **(gpus or {})}
    if settings.kubernetes_cpu_limits:
        cpu = limits["cpu"] = max(cpu, least_limited, key=cores)
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": limits}


def escaped(text: str) -> str:
    """Text of an environment or a command in which the cluster finds no variables to fill in."""
    return text.replace("$", "$$")


def volumes_of(mounts: Sequence[Mounted]) -> tuple[list[Document], list[Document]]:
    """Volumes and their mounts; a claim that is mounted twice is one volume."""
    names: dict[str, str] = {}
    for mount in mounts:
        names.setdefault(mount.claim, f"claim-{len(names)}")
    volumes: list[Document] = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in names.items()
    ]
    mounted: list[Document] = []
    for mount in mounts:
        each: Document = {"name": names[mount.claim], "mountPath": mount.path, "readOnly": mount.read_only}
        mounted.append({**each, "subPath": mount.sub_path} if mount.sub_path else each)
    return volumes, mounted


def own_job(job: OwnJob, settings: ProjectSettings) -> Document:
    """The Job: tried once; a pod that the cluster itself takes away is replaced."""
    volumes, mounts = volumes_of(job.mounts)
    beside = neighbours([mount.claim for mount in job.mounts if mount.single_node])
    container: Document = {
        "name": job.container,
        "image": settings.kubernetes_image,
        "imagePullPolicy": settings.kubernetes_image_pull_policy,
        "command": ["python3", "-P", "-m", job.module],
        "env": [{"name": name, "value": escaped(value)} for name, value in sorted(job.env.items())],
        "resources": resources_of(settings, cpu=job.cpu, memory=job.memory, least_limited=LEAST_LIMITED),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*mounts, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the container's own
    }
    if job.port is not None:
        container["ports"] = [{"name": "http", "containerPort": job.port}]
        container["readinessProbe"] = {
            "httpGet": {"path": "/healthz", "port": job.port},
            "periodSeconds": 1,
            "failureThreshold": 1,
        }
    pod: Document = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": job.grace_seconds,
        "securityContext": pod_security(settings.kubernetes_run_as),
        "containers": [container],
        "volumes": [*volumes, {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
        **beside.affinity(),
    }
    if settings.kubernetes_image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.kubernetes_image_pull_secrets]
    about: Document = {"labels": dict(job.labels), "annotations": dict(job.annotations)}
    spec: Document = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "ttlSecondsAfterFinished": job.keep_seconds,
        "template": {"metadata": {**about, "labels": {**job.labels, **beside.labels}}, "spec": pod},
    }
    if job.replaceable:
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        spec["podFailurePolicy"] = {"rules": [{"action": "Ignore", "onPodConditions": [disrupted]}]}
    if job.most_seconds is not None:
        spec["activeDeadlineSeconds"] = job.most_seconds
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name, "namespace": job.namespace, **about},
        "spec": spec,
    }
