"""From Services, Deployments and pods to how a serving stands. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from services.serving.cloud.kubernetes.forwards import LocalPorts
from services.serving.cloud.kubernetes.manifests import GRPC, MODEL, REST, REVISION
from services.serving.cloud.kubernetes.options import ServerOptions, ServingOptions
from services.serving.model import Observed, Replica
from shared.contracts.serving import Endpoint
from shared.kube.objects import Condition, Metadata, Pod, ServiceSpec, View, condition
from shared.kube.objects import Deployment as KubeDeployment
from shared.kube.states import image_trouble, is_over, is_ready, no_room, stuck

_ENDED_OFTEN: Final = 3


class Ingress(View, frozen=True, kw_only=True):
    """An address that a provider gave."""

    ip: str = ""
    hostname: str = ""


class LoadBalancer(View, frozen=True, kw_only=True):
    ingress: tuple[Ingress, ...] = ()


class ServiceStatus(View, frozen=True, kw_only=True):
    load_balancer: LoadBalancer = LoadBalancer()


class SeenService(View, frozen=True, kw_only=True):
    """A Service, with the address that a provider gave it."""

    metadata: Metadata
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


def observe(
    *,
    service: SeenService | None,
    deployment: KubeDeployment | None,
    pods: Sequence[Pod],
    refused: Replica | None,
    ports: LocalPorts | None,
    autoscaled: bool,
    home: str,
    now: datetime,
    options: ServingOptions,
    server: ServerOptions,
) -> Observed:
    """How a serving stands.

    Args:
        refused: stands for a revision that the cluster does not take.
        ports: of this machine that lead to it, where clients use such.
        autoscaled: the cluster decides how many replicas there are.
        home: the namespace of the pod that elearn runs in; "": it runs outside the cluster.
    """
    living = [pod for pod in pods if pod.metadata.deletion_timestamp is None and not is_over(pod)]
    living.sort(key=lambda pod: (_revision(pod), pod.metadata.name))
    replicas = [_replica(pod, now=now, options=options, server=server) for pod in living]
    waiting = next((text for pod in living if not is_ready(pod) and (text := no_room(pod) or image_trouble(pod))), "")
    if not waiting and deployment is not None:
        waiting = _not_made(deployment)
    wanted = deployment.spec.replicas if deployment is not None and autoscaled else None
    return Observed(
        replicas=(*replicas, refused) if refused is not None else tuple(replicas),
        endpoint=endpoint_of(service, options, ports, home=home) if service is not None else None,
        waiting=waiting,
        wanted=wanted,
    )


def endpoint_of(
    service: SeenService, options: ServingOptions, local: LocalPorts | None = None, *, home: str = ""
) -> Endpoint | None:
    """Where a serving is reached; None while its address is not known."""
    about = service.metadata
    model = about.annotations.get(MODEL, "")
    name = f"{about.name}.{about.namespace}.svc.{options.kubernetes_cluster_domain}"
    host, grpc, rest = "", GRPC, REST
    match service.spec.type:
        case _ if local is not None:
            host, grpc, rest = local
        case "NodePort":
            ports = {port.port: port.node_port for port in service.spec.ports}
            host, grpc, rest = options.kubernetes_serving_host, ports.get(GRPC, 0), ports.get(REST, 0)
        case "LoadBalancer":
            given = service.status.load_balancer.ingress
            host = (given[0].hostname or given[0].ip) if given else ""
        case _:
            host = name
    if not (host and grpc and rest):
        return None
    shown = f"[{host}]" if ":" in host else host
    internal = f"http://{name}:{REST}/v1/models/{model}" if home and local is None and host != name else ""
    return Endpoint(grpc=f"{shown}:{grpc}", rest=f"http://{shown}:{rest}/v1/models/{model}", internal_rest=internal)


def _replica(pod: Pod, *, now: datetime, options: ServingOptions, server: ServerOptions) -> Replica:
    revision = _revision(pod)
    if is_ready(pod):
        return Replica(revision=revision, state="ready")
    made = pod.metadata.creation_timestamp
    age = (now - made).total_seconds() if made is not None else 0.0
    restarts = max((each.restart_count for each in pod.status.container_statuses), default=0)
    words = stuck(pod)
    if words and (restarts >= _ENDED_OFTEN or age >= options.kubernetes_serving_image_seconds):
        return Replica(revision=revision, state="failing", reason=words)
    missing = image_trouble(pod)
    if missing and age >= options.kubernetes_serving_image_seconds:
        return Replica(revision=revision, state="failing", reason=missing)
    ready = condition(pod.status.conditions, "Ready")
    since = (ready.last_transition_time if ready is not None else None) or pod.status.start_time
    silent = (now - since).total_seconds() if since is not None and pod.status.phase == "Running" else 0.0
    if silent > server.start_seconds:
        reason = f"its model server has not answered for {server.start_seconds:g} s"
        return Replica(revision=revision, state="failing", reason=words or reason)
    return Replica(revision=revision, state="starting", reason=words or missing)


def _not_made(deployment: KubeDeployment) -> str:
    """Why pods can't even be made: a quota, a policy."""
    found: Condition | None = condition(deployment.status.conditions, "ReplicaFailure")
    return f"its pods can't be made: {found.message}" if found is not None and found.status == "True" else ""


def _revision(pod: Pod) -> int:
    text = pod.metadata.labels.get(REVISION, "")
    return int(text) if text.isdigit() else 0
