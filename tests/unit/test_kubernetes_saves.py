"""Saves on Kubernetes: the store, the Jobs, the results, what is told. Tables."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from services.registry.cloud.kubernetes import JobOptions, work
from services.registry.cloud.kubernetes.manifests import archive_job, job_of, remove_job, save_job
from services.registry.cloud.kubernetes.observing import LookAgain, ReadLog, Stuck, observe
from services.registry.cloud.kubernetes.options import store_manifests
from services.registry.cloud.port import Lost, Refused, Running, SaveJob, Succeeded
from services.registry.model import Facts, Key
from services.registry.reconcile import Job
from services.registry.save_job.job import DISK_FULL_EXIT, Result
from shared.contracts.datastore import ClaimVolume, LocalVolume
from shared.errors import Internal, Unsupported
from shared.kube.model_store import StoreKind, store_claim, store_kind
from shared.kube.objects import Job as KubeJob
from shared.kube.objects import Pod
from shared.kube.own_pods import own_job
from shared.kube.settings import ProjectSettings
from tests.support.kube import assert_valid

KEY = Key("default", "digits", 3)
JOB = Job(KEY, 2)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = Facts(size=1, files=1, digest="sha256:0", archive_size=2)
MODELS = ClaimVolume(claim_name="models")
SETTINGS = ProjectSettings(kubernetes_image_pull_secrets=("registry",))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("claim:models", StoreKind(kind="claim", name="models")),
        ("class:fast:10Gi", StoreKind(kind="class", name="fast", size="10Gi")),
        ("nfs:files.example:/models", StoreKind(kind="nfs", server="files.example", path="/models")),
        ("host:/srv/models", StoreKind(kind="host", path="/srv/models")),
        ("", "not set"),
        ("claim:", "'claim:'"),
        ("class:fast", "class:NAME:SIZE"),
        ("class:fast:much", "not a Kubernetes quantity"),
        ("nfs:files.example:models", "nfs:SERVER:/PATH"),
        ("host:models", "host:/PATH"),
        ("s3:bucket", "say where models are kept"),
    ],
)
def test_where_models_are_kept(text: str, kind: StoreKind | str) -> None:
    if isinstance(kind, str):
        with pytest.raises(Unsupported, match=kind):
            store_kind(text)
        return
    assert store_kind(text) == kind
    options = JobOptions(kubernetes_model_store=text)
    for namespace in ("elearn-a", "elearn-b"):
        manifests = store_manifests(kind, installation="e", namespace=namespace, options=options, labels={})
        assert_valid(*manifests)
        claims: list[Any] = [each for each in manifests if each["kind"] == "PersistentVolumeClaim"]
        assert [each["metadata"]["name"] for each in claims] == [store_claim(kind, "e")] * len(claims)
        asked = kind.size or "1Gi"  # what has no size of its own takes little of a quota
        assert all(each["spec"]["resources"]["requests"]["storage"] == asked for each in claims)


def save(**changes: Any) -> Any:
    asked = SaveJob(
        job=JOB, volume=ClaimVolume(claim_name="runs", sub_path="sub"), path="out/export", shown="out in datastore runs"
    )
    return save_job(
        msgspec.structs.replace(asked, **changes),
        installation="elearn",
        namespace="elearn-default",
        store=MODELS,
        options=JobOptions(),
    )


def test_jobs_are_what_kubernetes_takes_and_restricted() -> None:
    jobs = [
        save(),
        remove_job(KEY, installation="elearn", namespace="elearn-default", store=MODELS),
        archive_job(installation="elearn", namespace="elearn-default", store=MODELS),
    ]
    for job in jobs:
        manifest: Any = own_job(job, SETTINGS)
        assert_valid(manifest)
        pod = manifest["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert len(manifest["metadata"]["name"]) <= 57


def test_a_save_mounts_its_source_for_reading_and_the_store_for_writing() -> None:
    manifest: Any = own_job(save(), SETTINGS)
    spec = manifest["spec"]["template"]["spec"]
    claims = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in spec["volumes"][:-1]}
    mounts = [(claims[each["name"]], each["readOnly"]) for each in spec["containers"][0]["volumeMounts"][:-1]]
    assert mounts == [("models", False), ("runs", True)]
    assert spec["containers"][0]["volumeMounts"][1]["subPath"] == "sub"
    assert job_of(manifest["spec"]["template"]["metadata"]["labels"]) == JOB
    assert job_of({**manifest["metadata"]["labels"], "elearn.dev/version": "x"}) is None
    same: Any = own_job(save(volume=ClaimVolume(claim_name="models")), SETTINGS)
    assert len(same["spec"]["template"]["spec"]["volumes"]) == 2


def test_only_claims_can_be_saved_from() -> None:
    with pytest.raises(Internal):
        save(volume=LocalVolume(path="/x"))


def test_a_result_is_packed_into_one_line() -> None:
    for result in (Result(facts=FACTS), Result(refused="ü is no folder"), Result()):
        text = work.pack(result)
        assert "\n" not in text
        assert len(text.encode()) < work.LONGEST
        assert work.unpack(f"noise\n{text}\nmore noise\n") == result
    assert work.unpack("Traceback: x") is None
    assert work.unpack("packed:!!") is None


def kube(kind: str = "", *, message: str = "", age: float = 0.0) -> KubeJob:
    document = {
        "metadata": {"name": "j", "creationTimestamp": (NOW - timedelta(seconds=age)).isoformat()},
        "status": {"conditions": [{"type": kind, "status": "True", "message": message}] if kind else []},
    }
    return msgspec.convert(document, KubeJob)


def pod(phase: str = "Succeeded", *, code: int = 0, message: str = "", **status: Any) -> Pod:
    ended = {"terminated": {"exitCode": code, "message": message}} if phase in ("Succeeded", "Failed") else {}
    box = {"name": "elearn", "state": status.pop("state", ended)}
    document = {"metadata": {"name": "p"}, "status": {"phase": phase, "containerStatuses": [box], **status}}
    return msgspec.convert(document, Pod)


DONE = work.pack(Result(facts=FACTS))
NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
NO_ROOM = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}
EVICTED = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "no memory"}


@pytest.mark.parametrize(
    ("job", "pods", "told"),
    [
        (kube(), [], Running(job=JOB)),
        (kube(), [pod("Running")], Running(job=JOB)),
        (kube(), [pod(message=DONE)], Succeeded(job=JOB, facts=FACTS)),
        (kube("Complete"), [pod(message=DONE)], Succeeded(job=JOB, facts=FACTS)),
        (kube("Complete"), [pod("Failed", code=1), pod(message=DONE)], Succeeded(job=JOB, facts=FACTS)),
        (kube("Complete"), [pod(message=work.pack(Result(refused="no model")))], Refused(job=JOB, reason="no model")),
        (kube("Complete"), [pod(message="log")], ReadLog(pod="p")),
        (kube("Complete"), [], LookAgain()),
        (kube("Failed"), [], LookAgain()),
        (kube("Failed"), [pod("Failed", code=DISK_FULL_EXIT)], "disk is full"),
        (kube("Failed"), [pod("Failed", code=137)], "exit code 137"),
        (kube("Failed"), [pod("Failed", code=137, conditions=[EVICTED])], "taken away (TerminationByKubelet)"),
        (kube(age=1), [pod("Pending", state=NO_IMAGE)], Running(job=JOB)),
        (kube(age=99), [pod("Pending", state=NO_IMAGE)], "could not start: image"),
        (kube(age=99), [pod("Pending", state={})], Stuck(pod="p")),
        (kube(age=99), [pod("Pending", state={}, conditions=[NO_ROOM])], Running(job=JOB)),
        (kube(age=99), [pod("Running", state={})], Running(job=JOB)),
        (kube(age=99), [], Stuck(pod=None)),
    ],
)
def test_how_a_save_goes(job: KubeJob, pods: list[Pod], told: Any) -> None:
    seen = observe(JOB, job, pods, now=NOW, start_seconds=60.0)
    if isinstance(told, str):
        assert isinstance(seen, Lost | Refused)
        assert told in seen.reason
    else:
        assert seen == told
