"""Servings on Kubernetes: manifests and how they stand. Tables."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import pytest
from google.protobuf import text_format
from msgspec.structs import replace
from tensorflow_serving.config import model_server_config_pb2  # it needs no TensorFlow, unlike tensorflow_serving.apis

from services.serving.cloud.kubernetes import ServerOptions, ServingOptions
from services.serving.cloud.kubernetes.forwards import LocalPorts, preferred
from services.serving.cloud.kubernetes.manifests import (
    CONFIG,
    MONITORING,
    REVISION,
    autoscaler_manifest,
    deployment_manifest,
    disruption_manifest,
    own_config,
    service_manifest,
    tensorflow_config,
    where_of,
)
from services.serving.cloud.kubernetes.observing import SeenService, observe
from services.serving.cloud.kubernetes.policies import policy_manifest
from services.serving.cloud.port import Deployment
from services.serving.model import Observed, Replica, Source
from services.serving.server.config import ServerConfig, problem_of
from shared.contracts.datastore import ClaimVolume, LocalVolume
from shared.contracts.serving import Endpoint
from shared.errors import Unsupported
from shared.kube.manifest import marked
from shared.kube.objects import Deployment as KubeDeployment
from shared.kube.objects import Pod
from shared.kube.settings import ProjectSettings
from tests.support.kube import assert_valid

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STORE = ClaimVolume(claim_name="models")
SERVER = ServerOptions(cpu=0.25, memory=2**29, start_seconds=180.0, grace_seconds=10.0, max_batch=64, batch_micros=1000)
SETTINGS = ProjectSettings(kubernetes_image="elearn:dev", kubernetes_image_pull_secrets=("registry",))
TENSORFLOW = ServingOptions()
OWN = ServingOptions(kubernetes_serving_server="elearn")
GPUS = replace(OWN, kubernetes_serving_gpu_image="elearn:gpu")
ONE = Deployment(
    uid="u1",
    project="search",
    name="digits",
    model="digits",
    revision=3,
    replicas=2,
    sources=(Source(number=7, volume=STORE, path="search/digits/7"),),
    traffic={7: 100},
    labels={"champion": 7},
)
TWO = replace(
    ONE, sources=(*ONE.sources, Source(number=8, volume=STORE, path="search/digits/8")), traffic={7: 90, 8: 10}
)
WHERE = where_of(ONE, installation="elearn", namespace="elearn-search")


def rendered(
    deployment: Deployment = ONE,
    options: ServingOptions = TENSORFLOW,
    replicas: int = 2,
    settings: ProjectSettings = SETTINGS,
) -> Any:
    manifest = deployment_manifest(
        deployment, WHERE, replicas=replicas, settings=settings, options=options, server=SERVER
    )
    assert_valid(manifest)
    return manifest


@pytest.mark.parametrize("options", [TENSORFLOW, GPUS, replace(GPUS, kubernetes_serving_service="NodePort")])
def test_everything_is_what_kubernetes_takes_and_restricted(options: ServingOptions) -> None:
    scaled = replace(ONE, max_replicas=9)
    assert_valid(
        service_manifest(ONE, WHERE, options), disruption_manifest(ONE, WHERE), autoscaler_manifest(scaled, WHERE)
    )
    spec = rendered(replace(ONE, gpu=1, cpu=2.0, memory=2**30), options)["spec"]
    pod, box = spec["template"]["spec"], spec["template"]["spec"]["containers"][0]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert box["securityContext"]["allowPrivilegeEscalation"] is False
    assert box["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": "1"}
    assert box["resources"]["requests"] == {"cpu": "2", "memory": "1Gi"}
    assert "NVIDIA_VISIBLE_DEVICES" not in {each["name"] for each in box["env"]}
    stop = int(box["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= stop + SERVER.grace_seconds
    models = box["volumeMounts"][0]
    assert models == {"name": "models", "mountPath": "/models/digits", "subPath": "search/digits", "readOnly": True}


@pytest.mark.parametrize(
    ("options", "without", "with_gpus"),
    [
        (TENSORFLOW, "tensorflow/serving", "tensorflow/serving:latest-gpu"),
        (replace(TENSORFLOW, kubernetes_serving_image="x"), "x", "tensorflow/serving:latest-gpu"),
        (replace(TENSORFLOW, kubernetes_serving_gpu_image="y"), "tensorflow/serving", "y"),
        (OWN, "elearn:dev", None),
        (replace(OWN, kubernetes_serving_image="x"), "x", None),
        (replace(OWN, kubernetes_serving_image="x", kubernetes_serving_gpu_image="y"), "x", "y"),
    ],
)
def test_which_image_a_replica_runs(options: ServingOptions, without: str, with_gpus: str | None) -> None:
    def image(deployment: Deployment) -> str:
        (box,) = rendered(deployment, options)["spec"]["template"]["spec"]["containers"]
        return str(box["image"])

    assert image(ONE) == without
    if with_gpus is None:
        with pytest.raises(Unsupported, match="ELEARN_KUBERNETES_SERVING_GPU_IMAGE"):
            image(replace(ONE, gpu=1))
    else:
        assert image(replace(ONE, gpu=1)) == with_gpus


def test_replicas_with_gpus_go_where_others_are_kept_from() -> None:
    def pod(deployment: Deployment) -> Any:
        return rendered(deployment)["spec"]["template"]["spec"]

    assert "tolerations" not in pod(ONE)
    tolerated = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert pod(replace(ONE, gpu=1))["tolerations"] == [tolerated]


def test_cpu_is_limited_where_the_operator_wants_that() -> None:
    limited = rendered(replace(ONE, cpu=2.0), settings=replace(SETTINGS, kubernetes_cpu_limits=True))
    resources = limited["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["cpu"] == resources["requests"]["cpu"] == "2"


def test_tensorflow_serving_is_told_its_versions_and_asked_for_one() -> None:
    template = rendered()["spec"]["template"]
    box = template["spec"]["containers"][0]
    assert box["image"] == "tensorflow/serving"
    assert box["readinessProbe"]["httpGet"]["path"] == "/v1/models/digits/versions/7/metadata"
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"} in box["env"]
    assert template["metadata"]["labels"][REVISION] == "3"
    assert template["metadata"]["annotations"][CONFIG] == tensorflow_config(ONE)


def test_tensorflow_serving_is_started_with_flags_that_it_knows() -> None:
    (box,) = rendered()["spec"]["template"]["spec"]["containers"]
    assert box["command"] == [
        "tensorflow_model_server",
        "--port=8500",
        "--rest_api_port=8501",
        "--model_config_file=/etc/elearn/server",
        "--monitoring_config_file=/etc/elearn/monitoring",
        "--allow_version_labels_for_unavailable_models=true",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=5000",
    ]


@pytest.mark.parametrize(("deployment", "versions"), [(ONE, [7]), (TWO, [7, 8])])
def test_tensorflow_serving_reads_its_models_as_they_are_meant(deployment: Deployment, versions: list[int]) -> None:
    read = text_format.Parse(tensorflow_config(deployment), model_server_config_pb2.ModelServerConfig())
    (model,) = read.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("digits", "/models/digits", "tensorflow")
    assert model.model_version_policy.WhichOneof("policy_choice") == "specific"
    assert list(model.model_version_policy.specific.versions) == versions
    assert dict(model.version_labels) == {"champion": 7}


@pytest.mark.parametrize(
    ("options", "files"), [(TENSORFLOW, {"server": CONFIG, "monitoring": MONITORING}), (OWN, {"server": CONFIG})]
)
def test_a_server_finds_its_files_and_nothing_else(options: ServingOptions, files: dict[str, str]) -> None:
    template = rendered(ONE, options)["spec"]["template"]
    (mount,) = [
        each for each in template["spec"]["containers"][0]["volumeMounts"] if each["mountPath"] == "/etc/elearn"
    ]
    (volume,) = [each for each in template["spec"]["volumes"] if each["name"] == mount["name"]]
    found = {each["path"]: each["fieldRef"]["fieldPath"] for each in volume["downwardAPI"]["items"]}
    assert found == {file: f"metadata.annotations['{name}']" for file, name in files.items()}
    assert set(files.values()) == set(template["metadata"]["annotations"])


def test_tensorflow_serving_tells_its_metrics_where_our_own_server_does() -> None:
    annotations = rendered()["spec"]["template"]["metadata"]["annotations"]
    assert annotations[MONITORING] == 'prometheus_config { enable: true path: "/metrics" }\n'


@pytest.mark.parametrize("options", [TENSORFLOW, OWN])
def test_sigterm_reaches_a_server_that_has_no_handler_for_it(options: ServingOptions) -> None:
    assert rendered(ONE, options)["spec"]["template"]["spec"]["shareProcessNamespace"] is True


def test_our_own_server_reads_what_it_is_given() -> None:
    template = rendered(TWO, OWN)["spec"]["template"]
    box = template["spec"]["containers"][0]
    assert box["image"] == "elearn:dev"
    assert box["readinessProbe"]["grpc"] == {"port": 8500}
    config = msgspec.json.decode(template["metadata"]["annotations"][CONFIG], type=ServerConfig)
    assert own_config(TWO, SERVER) == template["metadata"]["annotations"][CONFIG]
    assert problem_of(config) is None
    assert config.host == "*"
    assert [each.path for each in config.versions] == ["/models/digits/7", "/models/digits/8"]
    assert config.traffic == {7: 90, 8: 10}


def test_a_new_revision_changes_the_pods_and_a_number_of_replicas_does_not() -> None:
    first = rendered()
    assert rendered(replicas=5)["spec"]["template"] == first["spec"]["template"]
    assert rendered(replace(ONE, revision=4))["spec"]["template"] != first["spec"]["template"]
    assert rendered(replace(ONE, revision=4))["spec"]["selector"] == first["spec"]["selector"]


@pytest.mark.parametrize(
    ("control", "callers"),
    [
        ("", [{"podSelector": {}}]),
        (
            "control",
            [{"podSelector": {}}, {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "control"}}}],
        ),
        (None, None),
    ],
)
def test_who_may_call_servings(control: str | None, callers: list[Any] | None) -> None:
    policy: Any = marked(policy_manifest("elearn-search", "elearn", control=control), "elearn")
    assert_valid(policy)
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [8500, 8501]
    assert rule.get("from") == callers


def test_the_policy_is_about_servings_of_this_elearn_alone() -> None:
    selects: Any = policy_manifest("elearn-search", "elearn", control="")["spec"]
    selects = selects["podSelector"]["matchLabels"]

    def labels(installation: str) -> Any:
        made: Any = marked(rendered(), installation)
        return made["spec"]["template"]["metadata"]["labels"]

    assert selects.items() <= labels("elearn").items()
    assert not selects.items() <= labels("other").items()
    assert not selects.items() <= {**labels("elearn"), "elearn.dev/room": "scheduler"}.items()


@pytest.mark.parametrize(
    ("access", "service", "home", "everybody"),
    [
        ("", "ClusterIP", "", False),
        ("", "ClusterIP", "elearn", False),
        ("", "NodePort", "elearn", True),
        ("", "LoadBalancer", "", True),
        ("forward", "ClusterIP", "", False),
        ("forward", "NodePort", "", True),
        ("service", "ClusterIP", "elearn", False),
        ("service", "ClusterIP", "", True),
    ],
)
def test_when_everybody_may_call_servings(
    access: Literal["", "service", "forward"],
    service: Literal["ClusterIP", "NodePort", "LoadBalancer"],
    home: str,
    everybody: bool,
) -> None:
    options = ServingOptions(kubernetes_serving_access=access, kubernetes_serving_service=service)
    assert options.open_to_all(home) is everybody


@pytest.mark.parametrize(
    "sources",
    [
        (Source(number=7, volume=LocalVolume(path="/models"), path="7"),),
        (Source(number=7, volume=STORE, path="search/digits/seven"),),
        (Source(number=7, volume=STORE, path="../7"),),
        (Source(number=7, volume=STORE, path="a/7"), Source(number=8, volume=STORE, path="b/8")),
        (Source(number=7, volume=STORE, path="a/7"), Source(number=8, volume=ClaimVolume(claim_name="x"), path="a/8")),
    ],
)
def test_versions_that_no_pod_can_mount_are_refused(sources: tuple[Source, ...]) -> None:
    with pytest.raises(Unsupported):
        rendered(replace(ONE, sources=sources))


def service(kind: str = "ClusterIP", **status: Any) -> SeenService:
    manifest = service_manifest(ONE, WHERE, replace(OWN, kubernetes_serving_service=kind))
    manifest["status"] = status
    seen: SeenService = msgspec.convert(manifest, SeenService)
    ports = tuple(replace(port, node_port=30000 + at) for at, port in enumerate(seen.spec.ports))
    return replace(seen, spec=replace(seen.spec, ports=ports))


@pytest.mark.parametrize(
    ("seen", "endpoint"),
    [
        (service(), (f"{WHERE.name}.elearn-search.svc.cluster.local:8500", 8501)),
        (service("NodePort"), ("nodes.example:30000", 30001)),
        (service("LoadBalancer"), None),
        (service("LoadBalancer", loadBalancer={"ingress": [{"ip": "192.0.2.7"}]}), ("192.0.2.7:8500", 8501)),
        (service("LoadBalancer", loadBalancer={"ingress": [{"ip": "2001:db8::7"}]}), ("[2001:db8::7]:8500", 8501)),
        (service("LoadBalancer", loadBalancer={"ingress": [{"hostname": "lb.example"}]}), ("lb.example:8500", 8501)),
        (None, None),
    ],
)
def test_where_a_serving_is_reached(seen: SeenService | None, endpoint: tuple[str, int] | None) -> None:
    found = look(seen=seen).endpoint
    if endpoint is None:
        assert found is None
    else:
        grpc, rest = endpoint
        host = grpc.rpartition(":")[0]
        assert found == Endpoint(grpc=grpc, rest=f"http://{host}:{rest}/v1/models/digits")


@pytest.mark.parametrize(
    ("seen", "home", "internal"),
    [
        (service(), "elearn", False),
        (service("NodePort"), "elearn", True),
        (service("NodePort"), "", False),
        (service("LoadBalancer", loadBalancer={"ingress": [{"ip": "192.0.2.7"}]}), "elearn", True),
        (service("LoadBalancer", loadBalancer={"ingress": [{"ip": "192.0.2.7"}]}), "", False),
    ],
)
def test_an_elearn_in_the_cluster_knows_a_way_that_does_not_leave_it(
    seen: SeenService, home: str, internal: bool
) -> None:
    found = look(seen=seen, home=home).endpoint
    assert found is not None
    inside = f"http://{WHERE.name}.elearn-search.svc.cluster.local:8501/v1/models/digits"
    assert found.internal_rest == (inside if internal else "")
    assert (found.rest == inside) is (seen.spec.type == "ClusterIP")


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_local_ports_go_before_the_address_of_the_service(kind: str) -> None:
    found = look(seen=service(kind), ports=LocalPorts(host="127.0.0.1", grpc=18001, rest=18002), home="elearn").endpoint
    assert found == Endpoint(grpc="127.0.0.1:18001", rest="http://127.0.0.1:18002/v1/models/digits")


def look(
    *pods: Pod, seen: SeenService | None = None, deployment: KubeDeployment | None = None, **more: Any
) -> Observed:
    settings = {"refused": None, "ports": None, "autoscaled": False, "home": "", **more}
    options = replace(OWN, kubernetes_serving_host="nodes.example")
    return observe(service=seen, deployment=deployment, pods=pods, now=NOW, options=options, server=SERVER, **settings)


def pod(
    phase: str = "Running", *, ready: bool = False, age: float = 1.0, revision: int = 3, going: bool = False, **box: Any
) -> Pod:
    made = (NOW - timedelta(seconds=age)).isoformat()
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}, *box.pop("conditions", ())]
    document = {
        "metadata": {
            "name": "p",
            "labels": {REVISION: str(revision)},
            "creationTimestamp": made,
            "deletionTimestamp": made if going else None,
        },
        "spec": {"containers": [{"name": "server", "image": "tensorflow/serving"}]},
        "status": {
            "phase": phase,
            "startTime": made,
            "conditions": conditions,
            "containerStatuses": [{"name": "server", **box}],
        },
    }
    return msgspec.convert(document, Pod)


MISSING = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
LOOP = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
SAID = {"terminated": {"exitCode": 1, "message": "no versions of servable digits found"}}
NO_ROOM = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}


@pytest.mark.parametrize(
    ("each", "state", "words"),
    [
        (pod(ready=True), "ready", ""),
        (pod(), "starting", ""),
        (pod(age=181), "failing", "has not answered for 180 s"),
        (pod("Pending", state=MISSING), "starting", "image tensorflow/serving can't be pulled: not found"),
        (pod("Pending", age=61, state=MISSING), "failing", "can't be pulled"),
        (pod(state=LOOP, restartCount=1, lastState=SAID), "starting", "it ended 1 times"),
        (pod(state=LOOP, restartCount=3, lastState=SAID), "failing", "no versions of servable digits found"),
        (pod("Pending", age=999, conditions=[NO_ROOM]), "starting", ""),
    ],
)
def test_how_a_replica_stands(each: Pod, state: str, words: str) -> None:
    (replica,) = look(each).replicas
    assert (replica.revision, replica.state) == (3, state)
    assert words in replica.reason


def test_replicas_that_leave_or_are_over_are_not_shown_and_the_rest_by_revision() -> None:
    seen = look(pod(ready=True, revision=10), pod(ready=True, revision=9), pod(going=True), pod("Failed"))
    assert [each.revision for each in seen.replicas] == [9, 10]


def test_what_a_serving_waits_for() -> None:
    assert "Insufficient cpu" in look(pod("Pending", conditions=[NO_ROOM])).waiting
    quota = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: compute"}
    document = {"metadata": {}, "spec": {"replicas": 4}, "status": {"conditions": [quota]}}
    deployment = msgspec.convert(document, KubeDeployment)
    assert look(deployment=deployment).waiting == "its pods can't be made: exceeded quota: compute"
    assert look(deployment=deployment).wanted is None
    assert look(deployment=deployment, autoscaled=True).wanted == 4
    refused = Replica(revision=4, state="failing", reason="no")
    assert look(refused=refused).replicas == (refused,)


@pytest.mark.parametrize(
    ("access", "service", "home", "forwarding"),
    [
        ("", "ClusterIP", "", True),
        ("", "ClusterIP", "elearn", False),
        ("", "NodePort", "", False),
        ("", "LoadBalancer", "", False),
        ("service", "ClusterIP", "", False),
        ("forward", "ClusterIP", "elearn", True),
        ("forward", "NodePort", "", True),
    ],
)
def test_when_local_ports_lead_to_servings(
    access: Literal["", "service", "forward"],
    service: Literal["ClusterIP", "NodePort", "LoadBalancer"],
    home: str,
    forwarding: bool,
) -> None:
    options = ServingOptions(kubernetes_serving_access=access, kubernetes_serving_service=service)
    assert options.forwarding(home) is forwarding


def test_local_ports_of_a_serving_are_always_the_same_and_those_of_others_differ() -> None:
    assert preferred("a", 8500) == preferred("a", 8500)
    found = {preferred(uid, port) for uid in "abcdefgh" for port in (8500, 8501)}
    assert len(found) == 16
    assert all(18000 <= port < 28000 for ports in found for port in ports)
