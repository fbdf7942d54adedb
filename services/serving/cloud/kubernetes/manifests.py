"""From a serving to the objects that run it. Pure.

Service                    the endpoint: stays as long as the serving
Deployment                 its replicas; a change of revision changes the pod's template, and the new ones are ready
                           before the old ones go
PodDisruptionBudget        a node that is drained takes one replica at a time
HorizontalPodAutoscaler    where the number of replicas has an upper bound
"""

import math
import posixpath
from typing import Final

import msgspec

from services.serving.cloud.kubernetes.options import NO_GPU_IMAGE, ServerOptions, ServingOptions
from services.serving.cloud.port import Deployment
from shared.contracts.datastore import ClaimVolume
from shared.errors import Unsupported
from shared.kube.names import PROJECT, ROOM, object_name
from shared.kube.nodes import GPU, GPU_TOLERATION
from shared.kube.own_pods import container_security, pod_security, resources_of
from shared.kube.quantities import cpu_quantity, memory_quantity
from shared.kube.settings import ProjectSettings
from shared.kube.single_node import neighbours
from shared.listening import EVERYWHERE

Document = dict[str, object]

ROOM_NAME: Final = "serving"
UID: Final = "elearn.dev/uid"
SERVING: Final = "elearn.dev/serving"
REVISION: Final = "elearn.dev/revision"
CONFIG: Final = "elearn.dev/config"
MONITORING: Final = "elearn.dev/monitoring"
MODEL: Final = "elearn.dev/model"
CONTAINER: Final = "server"
GRPC: Final = 8500
REST: Final = 8501

_CONFIG_FOLDER: Final = "/etc/elearn"
_CONFIG_FILE: Final = "server"
_MONITORING_FILE: Final = "monitoring"
_MONITORING_CONFIG: Final = 'prometheus_config { enable: true path: "/metrics" }\n'
"""TensorFlow Serving's ``MonitoringConfig``, as text: metrics are where those of our own server are."""
_MODELS: Final = "/models"
_CONNECTION_AGE: Final = 5.0
_KILL_AFTER: Final = 5
_PROBE_SECONDS: Final = 2


class Where(msgspec.Struct, frozen=True, kw_only=True):
    """Where the objects of a serving go, and what they are called."""

    name: str
    namespace: str


def where_of(deployment: Deployment, *, installation: str, namespace: str) -> Where:
    """Where a serving's objects go."""
    return Where(
        name=object_name(installation, deployment.project, deployment.name, deployment.uid), namespace=namespace
    )


def labels_of(deployment: Deployment) -> dict[str, str]:
    """The labels of everything of a serving."""
    return {
        ROOM: ROOM_NAME,
        PROJECT: deployment.project,
        SERVING: deployment.name,
        UID: deployment.uid,
    }


def selector_of(uid: str) -> dict[str, str]:
    """What tells the pods of a serving from all others."""
    return {ROOM: ROOM_NAME, UID: uid}


def service_manifest(deployment: Deployment, where: Where, options: ServingOptions) -> Document:
    """The endpoint."""
    ports = [
        {"name": "grpc", "port": GRPC, "targetPort": GRPC, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"},
        {"name": "rest", "port": REST, "targetPort": REST, "protocol": "TCP", "appProtocol": "http"},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _about(deployment, where, annotations={MODEL: deployment.model}),
        "spec": {
            "type": options.kubernetes_serving_service,
            "selector": selector_of(deployment.uid),
            "ports": ports,
        },
    }


def disruption_manifest(deployment: Deployment, where: Where) -> Document:
    """One replica at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _about(deployment, where),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector_of(deployment.uid)},
        },
    }


def autoscaler_manifest(deployment: Deployment, where: Where) -> Document:
    """Replicas between the bounds, by the CPU that they use of what they asked for."""
    cpu = {"type": "Utilization", "averageUtilization": deployment.cpu_percent}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _about(deployment, where),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": where.name},
            "minReplicas": max(1, deployment.replicas),
            "maxReplicas": deployment.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": cpu}}],
        },
    }


def deployment_manifest(
    deployment: Deployment,
    where: Where,
    *,
    replicas: int,
    settings: ProjectSettings,
    options: ServingOptions,
    server: ServerOptions,
) -> Document:
    """The replicas.

    Args:
        replicas: how many; where an autoscaler decides, as many as it wants now.

    Raises:
        Unsupported: the versions do not lie where one pod can mount them, or no server would use the GPUs.
    """
    labels = {**labels_of(deployment), REVISION: str(deployment.revision)}
    claim, folder = _folder(deployment)
    image = options.image(settings.kubernetes_image, gpu=bool(deployment.gpu))
    if not image:
        raise Unsupported(NO_GPU_IMAGE)
    beside = neighbours([claim] if _on_one_node(deployment) else [])
    own = options.own_server
    annotations = {CONFIG: own_config(deployment, server) if own else tensorflow_config(deployment)}
    files = {_CONFIG_FILE: CONFIG}
    if not own:
        annotations[MONITORING] = _MONITORING_CONFIG
        files[_MONITORING_FILE] = MONITORING
    mount: Document = {"name": "models", "mountPath": f"{_MODELS}/{deployment.model}", "readOnly": True}
    container: Document = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": settings.kubernetes_image_pull_policy,
        "command": _command(own=own),
        "ports": [{"name": "grpc", "containerPort": GRPC}, {"name": "rest", "containerPort": REST}],
        "env": _environment(deployment),
        "resources": _resources(deployment, server, settings),
        "securityContext": container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **_probes(deployment, server, own=own),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(options.kubernetes_serving_stop_seconds)]}}},
        "volumeMounts": [
            {**mount, "subPath": folder} if folder else mount,
            {"name": "config", "mountPath": _CONFIG_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
        ],
    }
    grace = options.kubernetes_serving_stop_seconds + math.ceil(server.grace_seconds) + _KILL_AFTER
    pod: Document = {
        # The first process of a container is not ended by SIGTERM unless it has a handler, and TensorFlow Serving has
        # none: here the pause container's is the first, and a replica does not hold memory and GPUs until it is killed.
        "shareProcessNamespace": True,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "securityContext": pod_security(settings.kubernetes_run_as),
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "config", "downwardAPI": {"items": [_file(path, name) for path, name in files.items()]}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
        **(beside.affinity() or _spread(deployment)),
    }
    if deployment.gpu:
        pod["tolerations"] = [GPU_TOLERATION]
    if settings.kubernetes_image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.kubernetes_image_pull_secrets]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _about(deployment, where),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": math.ceil(server.start_seconds) + 60,
            "selector": {"matchLabels": selector_of(deployment.uid)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
            "template": {
                "metadata": {"labels": {**labels, **beside.labels}, "annotations": annotations},
                "spec": pod,
            },
        },
    }


def tensorflow_config(deployment: Deployment) -> str:
    """TensorFlow Serving's ``ModelServerConfig``, as text."""
    versions = "".join(f" versions: {source.number}" for source in deployment.sources)
    labels = "".join(
        f" version_labels {{ key: {_quoted(label)} value: {number} }}" for label, number in deployment.labels.items()
    )
    return (
        f"model_config_list {{ config {{ name: {_quoted(deployment.model)}"
        f" base_path: {_quoted(f'{_MODELS}/{deployment.model}')}"
        f' model_platform: "tensorflow" model_version_policy {{ specific {{{versions} }} }}{labels} }} }}\n'
    )


def own_config(deployment: Deployment, server: ServerOptions) -> str:
    """The configuration of elearn's own server, as JSON."""
    threads = math.ceil(deployment.cpu) if deployment.cpu else 0
    config = {
        "model": deployment.model,
        "versions": [
            {"version": source.number, "path": f"{_MODELS}/{deployment.model}/{posixpath.basename(source.path)}"}
            for source in deployment.sources
        ],
        "labels": deployment.labels,
        "traffic": {str(number): share for number, share in deployment.traffic.items()},
        "host": EVERYWHERE,  # a pod has addresses that nobody knows, of either family
        "grpc_port": GRPC,
        "rest_port": REST,
        "reuse_port": False,
        "batching": {
            "max_batch_size": server.max_batch,
            "timeout_micros": server.batch_micros,
            "threads": threads,
        },
        "intra_op_threads": threads,
        "connection_age_seconds": _CONNECTION_AGE,
        "grace_seconds": server.grace_seconds,
    }
    return msgspec.json.encode(config).decode()


def _folder(deployment: Deployment) -> tuple[str, str]:
    """The claim that holds the versions, and the folder of it in which they lie, each under its number."""
    found = set()
    for source in deployment.sources:
        if not isinstance(source.volume, ClaimVolume):
            raise Unsupported("the Kubernetes cloud serves models from claims only")
        path = posixpath.normpath(posixpath.join(source.volume.sub_path, source.path))
        folder, name = posixpath.split(path)
        if name != str(source.number) or path.startswith(("/", "..")):
            raise Unsupported(
                f"version {source.number} lies at {path}: model servers want it in a folder of its number"
            )
        found.add((source.volume.claim_name, folder))
    if len(found) != 1:
        raise Unsupported("the versions of one serving must lie in one folder")
    return found.pop()


def _file(path: str, annotation: str) -> Document:
    return {"path": path, "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{annotation}']"}}


def _on_one_node(deployment: Deployment) -> bool:
    volumes = [source.volume for source in deployment.sources]
    return any(isinstance(volume, ClaimVolume) and volume.single_node for volume in volumes)


def _spread(deployment: Deployment) -> Document:
    constraint: Document = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector_of(deployment.uid)},
    }
    return {"topologySpreadConstraints": [constraint]}


def _command(*, own: bool) -> list[str]:
    config = f"{_CONFIG_FOLDER}/{_CONFIG_FILE}"
    if own:
        return ["python3", "-P", "-m", "services.serving.server", "--config", config]
    return [
        "tensorflow_model_server",
        f"--port={GRPC}",
        f"--rest_api_port={REST}",
        f"--model_config_file={config}",
        f"--monitoring_config_file={_CONFIG_FOLDER}/{_MONITORING_FILE}",
        "--allow_version_labels_for_unavailable_models=true",
        # It does not wait for what it has begun: connections are renewed, elsewhere, before it is told to end.
        f"--grpc_channel_arguments=grpc.max_connection_age_ms={_CONNECTION_AGE * 1000:.0f}",
    ]


def _environment(deployment: Deployment) -> list[Document]:
    env: list[Document] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the container's own
        {"name": "TF_CPP_MIN_LOG_LEVEL", "value": "1"},
    ]
    if not deployment.gpu:
        env.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"})
    return env


def _resources(deployment: Deployment, server: ServerOptions, settings: ProjectSettings) -> Document:
    memory = memory_quantity(deployment.memory or server.memory)
    gpus = {GPU: str(deployment.gpu)} if deployment.gpu else {}
    cpu = cpu_quantity(deployment.cpu if deployment.cpu is not None else server.cpu)
    return resources_of(settings, cpu=cpu, memory=memory, gpus=gpus)


def _probes(deployment: Deployment, server: ServerOptions, *, own: bool) -> Document:
    """Readiness by gRPC health of our own server; TensorFlow Serving has none, but tells a version's metadata once it
    answers for it."""
    if own:
        asks: Document = {"grpc": {"port": GRPC}}
        alive: Document = {"httpGet": {"path": "/healthz", "port": REST}}
    else:
        version = max(deployment.traffic, key=lambda number: (deployment.traffic[number], number))
        path = f"/v1/models/{deployment.model}/versions/{version}/metadata"
        asks = {"httpGet": {"path": path, "port": REST}}
        alive = {"tcpSocket": {"port": GRPC}}
    often = {"periodSeconds": _PROBE_SECONDS, "timeoutSeconds": _PROBE_SECONDS}
    return {
        "startupProbe": {**asks, **often, "failureThreshold": math.ceil(server.start_seconds / _PROBE_SECONDS)},
        "readinessProbe": {**asks, **often, "failureThreshold": 2},
        "livenessProbe": {**alive, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    }


def _about(deployment: Deployment, where: Where, *, annotations: dict[str, str] | None = None) -> Document:
    about: Document = {"name": where.name, "namespace": where.namespace, "labels": labels_of(deployment)}
    return {**about, "annotations": annotations} if annotations else about


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
