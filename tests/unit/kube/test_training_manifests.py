"""From an attempt to the objects that run it: what the cluster is told, as the kubelet would take it."""

import json
import re
from typing import Any

import pytest

from services.scheduler.cloud.kubernetes.examining import notes, spec_errors
from services.scheduler.cloud.kubernetes.identity import (
    QUEUE,
    QUEUE_PRIORITY,
    ROSTER,
    AttemptKey,
    Roster,
    attempt_of,
    groups_of,
    task_of,
)
from services.scheduler.cloud.kubernetes.manifests import Attempt, Setting, job_manifest, service_manifest
from services.scheduler.cloud.kubernetes.mounts import pod_mounts
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.peers import wait_for
from services.scheduler.cloud.kubernetes.preparation import Preparation
from services.scheduler.cloud.port import Launch
from services.scheduler.errors import CannotLaunch
from services.scheduler.frameworks.tensorflow import TensorFlow
from services.scheduler.model import MountPlan
from services.scheduler.spec import plan_tasks
from shared.codec import decode_json
from shared.contracts.datastore import ClaimVolume, LocalVolume
from shared.contracts.training import Role, Roles, SecretKey
from shared.errors import Unsupported
from shared.kube.settings import ProjectSettings
from tests.support.kube import assert_valid
from tests.support.trainings import cluster, spec

KEY = AttemptKey("search", "ctr-7", 2)
OWNER: dict[str, object] = {"apiVersion": "v1", "kind": "Service", "name": "s", "uid": "1"}
NAMESPACE = "elearn-search"
VOLUME = ClaimVolume(claim_name="digits", sub_path="top")


def setting(**fields: Any) -> Setting:
    values = {"projects": ProjectSettings(), "options": TrainingOptions(), "restarts": 10, "grace": 10.0}
    return Setting(installation="elearn", **{**values, **fields})


def attempt(*, plans: tuple[MountPlan, ...] = (), secrets: tuple[str, ...] = (), **fields: Any) -> Attempt:
    asked = spec(secrets=fields.pop("secrets_of", {}), **fields)
    plan = plan_tasks(asked, TensorFlow())
    launch = Launch(project=KEY.project, name=KEY.name, attempt=KEY.attempt, spec=asked, plan=plan, mounts=plans)
    return Attempt(
        key=KEY,
        launch=launch,
        groups=groups_of(plan),
        namespace=NAMESPACE,
        mounts=pod_mounts(plans, NAMESPACE),
        code_secrets=secrets,
    )


def jobs_of(one: Attempt, with_setting: Setting | None = None) -> dict[str, Any]:
    used = with_setting or setting()
    jobs = [job_manifest(one, group, TensorFlow(), OWNER, used) for group in one.groups]
    service = service_manifest(one.key, one.groups, one.namespace, used)
    assert_valid(service, *jobs)
    return {group.suffix: job for group, job in zip(one.groups, jobs, strict=True)}


def pod_of(job: dict[str, Any]) -> Any:
    return job["spec"]["template"]["spec"]


def task_in(job: dict[str, Any], index: int = 0) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a pod as its program sees them: filled in in order, as the kubelet does it."""
    container = pod_of(job)["containers"][0]
    env: dict[str, str] = {}
    for each in container["env"]:
        if "valueFrom" in each:
            path = each["valueFrom"]["fieldRef"]["fieldPath"]
            assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            env[each["name"]] = str(index)
        else:
            env[each["name"]] = expanded(each["value"], env)
    return [expanded(word, env) for word in container["command"]], env


def expanded(text: str, env: dict[str, str]) -> str:
    """``$(NAME)`` of a known name is filled in; ``$$`` is a dollar."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda match: "$" if match[0] == "$$" else env.get(match[1], match[0]),
        text,
    )


def test_every_task_is_told_who_the_others_are() -> None:
    words = ("python", "train.py", "--job={role}", "--index={index}", "--ps={ps_hosts}")
    jobs = jobs_of(attempt(roles=cluster(workers=2, ps=1), command=words))
    assert list(jobs) == ["chief", "worker", "ps"]
    name = jobs["worker"]["metadata"]["name"]
    subdomain = pod_of(jobs["worker"])["subdomain"]
    worker = f"{name}-1.{subdomain}.{NAMESPACE}.svc:2222"
    for role, index in (("chief", 0), ("worker", 0), ("worker", 1), ("ps", 0)):
        command, env = task_in(jobs[role], index)
        config = json.loads(env["TF_CONFIG"])
        assert config["task"] == {"type": role, "index": index}
        assert config["cluster"]["worker"][1] == worker
        assert {name: len(hosts) for name, hosts in config["cluster"].items()} == {"chief": 1, "worker": 2, "ps": 1}
        assert command[2:] == [f"--job={role}", f"--index={index}", f"--ps={config['cluster']['ps'][0]}"]
        assert (env["ELEARN_ROLE"], env["ELEARN_INDEX"], env["ELEARN_ATTEMPT"]) == (role, str(index), "2")


def test_tasks_start_when_the_names_of_their_peers_are_known() -> None:
    (container,) = pod_of(jobs_of(attempt(roles=cluster(workers=2, ps=1)))["ps"])["initContainers"]
    told = decode_json(Preparation, container["env"][0]["value"].encode())
    assert [host.split(".")[0].split("-", 5)[-1] for host in told.peers] == ["chief-0", "ps-0", "worker-0", "worker-1"]
    many = pod_of(jobs_of(attempt(roles=cluster(workers=500, ps=1)))["worker"])["initContainers"][0]
    assert len(decode_json(Preparation, many["env"][0]["value"].encode()).peers) == 64
    assert "initContainers" not in pod_of(jobs_of(attempt())["chief"])


@pytest.mark.parametrize(
    ("known_at", "patience", "left", "slept"),
    [({"a": 0, "b": 0}, 5, [], 0), ({"a": 0, "b": 2}, 5, [], 2), ({"a": 9, "b": 1}, 5, ["a"], 5)],
)
def test_names_are_waited_for_so_long(known_at: dict[str, float], patience: float, left: list[str], slept: int) -> None:
    at = [0.0]

    def sleep(seconds: float) -> None:
        at[0] += seconds

    found = wait_for(
        ["a", "b"],
        patience=patience,
        look=lambda host: known_at[host] <= at[0],
        clock=lambda: at[0],
        sleep=sleep,
    )
    assert found == left
    assert slept <= at[0] <= slept + 1


def test_a_single_task_is_told_of_no_cluster() -> None:
    _, env = task_in(jobs_of(attempt())["chief"])
    assert "TF_CONFIG" not in env


def test_what_users_write_is_taken_as_it_is() -> None:
    odd = "a$(ELEARN_ROLE)b $$ $HOME $(nothing) ${x}"
    command, env = task_in(jobs_of(attempt(command=("echo", odd), env={"ODD": odd}))["chief"])
    assert command == ["echo", odd]
    assert env["ODD"] == odd


def test_secrets_are_references() -> None:
    one = attempt(secrets_of={"API_TOKEN": SecretKey(name="team", key="token")}, env={"A": "b"})
    env = {each["name"]: each for each in pod_of(jobs_of(one)["chief"])["containers"][0]["env"]}
    assert env["API_TOKEN"] == {
        "name": "API_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "team", "key": "token"}},
    }
    home = attempt(secrets_of={"HOME": SecretKey(name="team", key="home")})
    names = [each["name"] for each in pod_of(jobs_of(home)["chief"])["containers"][0]["env"]]
    assert names.count("HOME") == 1


def test_the_last_task_of_a_role_gets_the_gpus_that_are_left() -> None:
    roles = Roles(chief=Role(replicas=0), worker=Role(gpus=20, gpus_per_task=8))
    jobs = jobs_of(attempt(roles=roles))
    assert {name: job["spec"]["completions"] for name, job in jobs.items()} == {"worker": 2, "worker-rest": 1}
    gpus = {name: pod_of(job)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for name, job in jobs.items()}
    assert gpus == {"worker": "8", "worker-rest": "4"}
    _, env = task_in(jobs["worker-rest"])
    config = json.loads(env["TF_CONFIG"])
    assert config["task"] == {"type": "worker", "index": 2}
    assert env["ELEARN_INDEX"] == "2"
    assert config["cluster"]["worker"][2].startswith(f"{jobs['worker-rest']['metadata']['name']}-0.")


def test_gpus_are_limits_and_hidden_from_who_asked_for_none() -> None:
    jobs = jobs_of(attempt(roles=Roles(chief=Role(gpu=0), worker=Role(gpu=2)), env={"NVIDIA_VISIBLE_DEVICES": "all"}))
    _, chief = task_in(jobs["chief"])
    _, worker = task_in(jobs["worker"])
    assert (chief["NVIDIA_VISIBLE_DEVICES"], chief["CUDA_VISIBLE_DEVICES"]) == ("none", "")
    assert "CUDA_VISIBLE_DEVICES" not in worker
    assert "tolerations" in pod_of(jobs["worker"])
    assert "nvidia.com/gpu" not in pod_of(jobs["chief"])["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(
    ("limited", "cpu", "preparing", "limits"),
    [
        (False, "2", {"cpu": "50m", "memory": "64Mi"}, {"memory": "512Mi"}),
        (True, "2", {"cpu": "2", "memory": "64Mi"}, {"memory": "512Mi", "cpu": "2"}),
        (True, "10m", {"cpu": "50m", "memory": "64Mi"}, {"memory": "512Mi", "cpu": "50m"}),
    ],
)
def test_cpu_is_limited_where_the_operator_wants_that(
    limited: bool, cpu: str, preparing: dict[str, str], limits: dict[str, str]
) -> None:
    with_limits = setting(projects=ProjectSettings(kubernetes_cpu_limits=limited))
    roles = Roles(chief=Role(cpu=cpu, memory="1Gi", gpu=1))
    pod = pod_of(jobs_of(attempt(roles=roles, secrets=("code",), code="sha256:" + "0" * 64), with_limits)["chief"])
    assert pod["initContainers"][0]["resources"] == {"requests": preparing, "limits": limits}
    asked = pod["containers"][0]["resources"]
    assert asked["requests"] == {"cpu": cpu, "memory": "1Gi"}
    more = {"cpu": cpu} if limited else {}
    assert asked["limits"] == {"memory": "1Gi", "nvidia.com/gpu": "1", **more}


@pytest.mark.parametrize(
    ("roles", "per_index", "role", "expected"),
    [
        (cluster(workers=2, ps=1), True, "worker", {"backoffLimitPerIndex": 10, "podFailurePolicy": True}),
        (cluster(workers=2, ps=1), True, "ps", {"backoffLimitPerIndex": 0}),
        (cluster(workers=2), True, "worker", {"backoffLimitPerIndex": 0}),
        (cluster(evaluator=1), True, "evaluator", {"backoffLimitPerIndex": 0}),
        (cluster(workers=2, ps=1), False, "worker", {"backoffLimit": 20, "podFailurePolicy": True}),
        (cluster(workers=2, ps=1), False, "chief", {"backoffLimit": 0}),
    ],
)
def test_what_may_be_started_again_is(roles: Roles, per_index: bool, role: str, expected: dict[str, Any]) -> None:
    found = jobs_of(attempt(roles=roles), setting(per_index=per_index))[role]["spec"]
    kept = ("backoffLimit", "backoffLimitPerIndex", "podFailurePolicy")
    values = {key: found[key] for key in kept if key in found}
    if "podFailurePolicy" in values:
        (rule,) = values["podFailurePolicy"]["rules"]
        assert (rule["action"], rule["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
        values["podFailurePolicy"] = True
    assert values == expected


def test_jobs_wait_until_all_of_them_are_there() -> None:
    jobs = jobs_of(attempt(roles=cluster(workers=1), deadline="2h"))
    for job in jobs.values():
        assert job["spec"]["suspend"] is True
        assert job["spec"]["activeDeadlineSeconds"] == 7260
        assert job["metadata"]["ownerReferences"] == [OWNER]


def test_pods_are_found_again_by_their_labels() -> None:
    roles = Roles(chief=Role(), worker=Role(gpus=3, gpus_per_task=2))
    one = attempt(roles=roles)
    jobs = jobs_of(one)
    labels = jobs["worker-rest"]["spec"]["template"]["metadata"]["labels"]
    assert attempt_of(labels) == KEY
    assert task_of({**labels, "batch.kubernetes.io/job-completion-index": "0"}) == ("worker", 1)
    service = service_manifest(KEY, one.groups, NAMESPACE, setting())
    about: Any = service["metadata"]
    roster = decode_json(Roster, about["annotations"][ROSTER].encode())
    assert [(group.role, group.first, group.count) for group in roster.groups] == [
        ("chief", 0, 1),
        ("worker", 0, 1),
        ("worker", 1, 1),
    ]
    assert (roster.restarts, roster.released) == (10, False)


def test_labels_of_the_training_are_on_its_jobs_and_pods_below_ours() -> None:
    one = attempt(labels={"team": "search", "cost.example.org/center": "4711", "elearn.dev/role": "ps"})
    job = jobs_of(one)["chief"]
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert (labels["team"], labels["cost.example.org/center"]) == ("search", "4711")
        assert labels["elearn.dev/role"] == "chief"
    service: Any = service_manifest(KEY, one.groups, NAMESPACE, setting())
    assert "team" not in service["spec"]["selector"]


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("team", None),
        ("cost.example.org/center", None),
        ("notkubernetes.io/x", None),
        ("x-k8s.io/x", None),
        ("elearn.dev.example.org/x", None),
        ("example.org/job-name", None),
        ("elearn.dev/project", "elearn"),
        ("more.elearn.dev/x", "elearn"),
        ("job-name", "Kubernetes"),
        ("controller-uid", "Kubernetes"),
        ("kubernetes.io/x", "Kubernetes"),
        ("batch.kubernetes.io/job-completion-index", "Kubernetes"),
        ("app.kubernetes.io/managed-by", "Kubernetes"),
        ("k8s.io/x", "Kubernetes"),
        ("node.k8s.io/x", "Kubernetes"),
        ("kueue.x-k8s.io/pod-group-name", "Kueue"),
        ("kueue.x-k8s.io/queue-name", None),
    ],
)
def test_labels_that_belong_to_others_are_refused(key: str, owner: str | None) -> None:
    errors = spec_errors(spec(labels={"a": "b", key: "x"}))
    told = [] if owner is None else [(f"labels.{key}", f"belongs to {owner}: choose another label")]
    assert [(error.field, error.message) for error in errors] == told


@pytest.mark.parametrize(
    ("labels", "default", "expected"),
    [
        ({}, "", {}),
        ({}, "team", {QUEUE: "team"}),
        ({QUEUE: "own"}, "team", {QUEUE: "own"}),
        ({QUEUE: "own", QUEUE_PRIORITY: "high"}, "", {QUEUE: "own", QUEUE_PRIORITY: "high"}),
        ({QUEUE_PRIORITY: "high"}, "team", {QUEUE: "team", QUEUE_PRIORITY: "high"}),
    ],
)
def test_the_queue_is_on_the_jobs_and_not_on_the_pods(
    labels: dict[str, str], default: str, expected: dict[str, str]
) -> None:
    options = TrainingOptions(kubernetes_queue=default)
    for job in jobs_of(attempt(labels=labels, roles=cluster(workers=1)), setting(options=options)).values():
        assert {key: value for key, value in job["metadata"]["labels"].items() if "kueue" in key} == expected
        assert not any("kueue" in key for key in job["spec"]["template"]["metadata"]["labels"])
        assert job["spec"]["suspend"] is True


@pytest.mark.parametrize(
    ("labels", "default", "field", "words"),
    [
        ({QUEUE: "Team_A"}, "", QUEUE, "'Team_A' can't be the name of a queue"),
        ({QUEUE: ""}, "team", QUEUE, "'' can't be the name of a queue"),
        ({QUEUE_PRIORITY: "high"}, "", QUEUE_PRIORITY, "means something only beside kueue.x-k8s.io/queue-name"),
    ],
)
def test_what_kueue_could_not_take_is_refused(labels: dict[str, str], default: str, field: str, words: str) -> None:
    (error,) = spec_errors(spec(labels=labels), default)
    assert (error.field, error.message) == (f"labels.{field}", words)


def test_a_default_queue_that_can_not_be_is_refused_at_start() -> None:
    with pytest.raises(Unsupported, match="ELEARN_KUBERNETES_QUEUE: 'No Queue' can't be"):
        TrainingOptions(kubernetes_queue="No Queue")


def test_pods_are_restricted_unless_the_project_may_be_root() -> None:
    pod = pod_of(jobs_of(attempt())["chief"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    root = setting(projects=ProjectSettings(kubernetes_root_projects=("search",)))
    pod = pod_of(jobs_of(attempt(secrets=("code",), code="sha256:" + "0" * 64), root)["chief"])
    assert "runAsNonRoot" not in pod["securityContext"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["initContainers"][0]["securityContext"]["runAsUser"] == 10001


def test_names_of_any_length_stay_legal() -> None:
    long = AttemptKey("p" * 40, "t" * 40, 12345)
    one = attempt(roles=Roles(worker=Role(gpus=9_999, gpus_per_task=2)))
    for group in one.groups:
        from services.scheduler.cloud.kubernetes.identity import job_name

        assert len(f"{job_name(long, group, 'an-installation')}-9999") <= 63 - len("-abcde")


class TestMounts:
    def plans(self) -> tuple[MountPlan, ...]:
        return (
            MountPlan(datastore="digits", path="data/digits", volume=VOLUME, read_only=True),
            MountPlan(datastore="digits", path="/part", volume=VOLUME, folder="a/b", read_only=True),
            MountPlan(datastore="runs", path="out", volume=ClaimVolume(claim_name="runs"), folder="ctr-7", own=True),
        )

    def test_directories_lie_where_the_spec_says(self) -> None:
        pod = pod_of(jobs_of(attempt(plans=self.plans()))["chief"])
        mounts = {each["mountPath"]: each for each in pod["containers"][0]["volumeMounts"]}
        assert mounts["/workspace/data/digits"]["subPath"] == "top"
        assert mounts["/part"]["subPath"] == "top/a/b"
        assert mounts["/workspace/out"] == {
            "name": "claim-1",
            "mountPath": "/workspace/out",
            "readOnly": False,
            "subPath": "ctr-7",
        }
        assert pod["containers"][0]["workingDir"] == "/workspace"
        claims = [each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
        assert claims == [{"claimName": "digits", "readOnly": True}, {"claimName": "runs", "readOnly": False}]

    def test_folders_are_made_or_looked_for_before_the_kubelet_would_make_them(self) -> None:
        (container,) = pod_of(jobs_of(attempt(plans=self.plans()))["chief"])["initContainers"]
        told = decode_json(Preparation, container["env"][0]["value"].encode())
        assert [(each.datastore, each.path, each.make) for each in told.folders] == [
            ("digits", "a/b", False),
            ("runs", "ctr-7", True),
        ]
        assert told.points == ("data/digits", "out")
        mounted = {each["mountPath"]: each for each in container["volumeMounts"]}
        assert "/workspace" in mounted
        assert mounted[told.folders[0].volume]["subPath"] == "top"
        assert mounted[told.folders[0].volume]["readOnly"] is True
        assert "subPath" not in mounted[told.folders[1].volume]

    def test_without_code_or_relative_mounts_the_image_s_own_directory_is_used(self) -> None:
        plan = MountPlan(datastore="d", path="/data", volume=VOLUME, read_only=True)
        pod = pod_of(jobs_of(attempt(plans=(plan,)))["chief"])
        assert "workingDir" not in pod["containers"][0]
        assert "initContainers" not in pod

    @pytest.mark.parametrize(
        "volume", [LocalVolume(path="/x"), ClaimVolume(claim_name="c", namespace="elsewhere")], ids=["local", "other"]
    )
    def test_what_is_no_claim_of_the_namespace_is_refused(self, volume: Any) -> None:
        with pytest.raises(CannotLaunch, match="'d'"):
            pod_mounts((MountPlan(datastore="d", path="x", volume=volume),), NAMESPACE)


@pytest.mark.parametrize(
    ("image", "good"),
    [
        (None, True),
        ("elearn:dev", True),
        ("tensorflow/tensorflow:2.21.0-gpu", True),
        ("registry.example:5000/team/ctr@sha256:" + "0" * 64, True),
        ("[fd00::1]:5000/team/ctr:1", True),
        ("[fd00::1]/ctr", True),
        ("fd00::1/ctr", False),
        ("[fd00::1]", False),
        ("[host]/ctr", False),
        ("venv:/opt/x", False),
        ("upper/Case", False),
        ("two words", False),
        ("-x", False),
    ],
)
def test_images_are_looked_at_before_anything_starts(image: str | None, good: bool) -> None:
    assert (not spec_errors(spec(image=image))) is good


def test_what_is_done_otherwise_is_told() -> None:
    told = notes("search", spec(), setting())
    assert any("elearn:dev" in note for note in told)
    assert any("user 10001" in note for note in told)


@pytest.mark.parametrize(
    ("roles", "image", "of_the_operator", "told"),
    [
        (Roles(chief=Role(gpu=1)), None, "", True),
        (Roles(chief=Role(), worker=Role(gpus=3, gpus_per_task=2)), None, "", True),
        (Roles(chief=Role()), None, "", False),
        (Roles(chief=Role(), worker=Role(replicas=0, gpu=1)), None, "", False),
        (Roles(chief=Role(gpu=1)), "tensorflow/tensorflow:2.21.0-gpu", "", False),
        (Roles(chief=Role(gpu=1)), None, "tensorflow/tensorflow:2.21.0-gpu", False),
    ],
)
def test_gpus_that_elearns_own_image_can_not_use_are_told(
    roles: Roles, image: str | None, of_the_operator: str, told: bool
) -> None:
    with_image = setting(options=TrainingOptions(kubernetes_training_image=of_the_operator))
    found = notes("search", spec(roles=roles, image=image), with_image)
    assert any("computes on CPUs" in note for note in found) is told
