"""What an operator may say to the chart: it is done, or refused with its name."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support import kube
from tests.support.chart import (
    Manifest,
    documents,
    environment_of,
    of_kind,
    pod_templates,
    rendered,
    rendered_from,
    run_helm,
)

PLACED: Mapping[str, Any] = {
    "priorityClassName": "important",
    "nodeSelector": {"pool": "control"},
    "tolerations": [{"key": "control", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}},
}


# -- what is done -----------------------------------------------------------------------------------------------------


def test_every_pod_of_the_chart_runs_where_it_is_said() -> None:
    manifests = rendered_from(PLACED)
    kube.assert_valid(*manifests)
    templates = pod_templates(manifests)
    assert len(templates) == 8
    for name, template in templates.items():
        assert {key: template["spec"].get(key) for key in PLACED} == PLACED, name


def test_labels_are_of_everything_and_of_no_selector() -> None:
    manifests = rendered_from({"labels": {"team": "ml"}})
    kube.assert_valid(*manifests)
    everything = [*manifests, *pod_templates(manifests).values()]
    assert all(each["metadata"]["labels"]["team"] == "ml" for each in everything)
    assert _selectors(manifests) == _selectors(rendered()), "what can't be changed stays as it is"


def test_annotations_are_of_every_pod_and_go_before_the_charts() -> None:
    manifests = rendered_from({"podAnnotations": {"example.org/mesh": "off", "prometheus.io/scrape": "false"}})
    kube.assert_valid(*manifests)
    for name, template in pod_templates(manifests).items():
        annotations = template["metadata"]["annotations"]
        assert annotations["example.org/mesh"] == "off", name
        assert annotations["prometheus.io/scrape"] == "false", name
    assert "checksum/config" in pod_templates(manifests)["elearn-nats"]["metadata"]["annotations"]
    assert pod_templates(manifests)["elearn-api"]["metadata"]["annotations"]["prometheus.io/path"] == "/metrics"


def test_the_gateway_may_be_published_by_its_service() -> None:
    manifests = rendered_from({"service": {"type": "LoadBalancer", "annotations": {"example.org/internal": "true"}}})
    kube.assert_valid(*manifests)
    (service,) = [each for each in of_kind(manifests, "Service") if each["metadata"]["name"] == "elearn"]
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["annotations"] == {"example.org/internal": "true"}
    assert {each["spec"].get("type", "ClusterIP") for each in of_kind(manifests, "Service") if each != service} == {
        "ClusterIP"
    }


def test_images_by_digest_and_who_may_pull_them() -> None:
    image = "registry.example/elearn@sha256:" + "a" * 64
    manifests = rendered(f"image={image}", "nats.image=", "postgres.image=", "imagePullSecrets[0].name=pull")
    for name, template in pod_templates(manifests).items():
        assert {each["image"] for each in template["spec"]["containers"]} == {image}, name
        assert template["spec"]["imagePullSecrets"] == [{"name": "pull"}], name


@pytest.mark.parametrize("service", ["api", "scheduler", "datastore", "registry", "serving"])
def test_one_replica_may_be_drained_too(service: str) -> None:
    manifests = rendered(f"services.{service}.replicas=1")
    (budget,) = [
        each for each in of_kind(manifests, "PodDisruptionBudget") if each["metadata"]["name"].endswith(service)
    ]
    assert budget["spec"]["maxUnavailable"] == 1
    assert "minAvailable" not in budget["spec"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1073741824, "1073741824"),  # helm reads a file's numbers as floats, which print as 1.073741824e+09
        (1000000, "1000000"),
        (0.25, "0.25"),
        (True, "true"),
        ("a, b", "a, b"),
        ("007", "007"),
    ],
)
def test_settings_reach_services_as_they_were_written(value: object, text: str) -> None:
    assert environment_of(rendered_from({"env": {"ELEARN_X": value}}), "elearn-api")["ELEARN_X"] == text


@pytest.mark.parametrize(("own", "text"), [(3, "3"), (0, "0"), (False, "false"), ("", "")])
def test_a_services_own_setting_goes_before_the_common_one(own: object, text: str) -> None:
    manifests = rendered_from(
        {"env": {"ELEARN_POOL_SIZE": 10}, "services": {"registry": {"env": {"ELEARN_POOL_SIZE": own}}}}
    )
    assert environment_of(manifests, "elearn-registry")["ELEARN_POOL_SIZE"] == text
    assert environment_of(manifests, "elearn-serving")["ELEARN_POOL_SIZE"] == "10"


def test_other_values_make_another_job_as_one_can_not_be_changed() -> None:
    names = {
        each["metadata"]["name"]
        for values in ((), ("env.ELEARN_POOL_SIZE=9",))
        for each in of_kind(rendered(*values), "Job")
    }
    assert len(names) == 2


def test_a_bundled_nats_may_take_its_time_to_read_what_it_kept() -> None:
    (container,) = pod_templates(rendered())["elearn-nats"]["spec"]["containers"]
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 600


@pytest.mark.parametrize(("bundled", "longest"), [("true", 43), ("false", 53)])
def test_names_are_as_long_as_they_may_be(bundled: str, longest: int) -> None:
    external = ("nats.bundled=false", "nats.host=n", "postgres.bundled=false", "postgres.host=p")
    settings = external if bundled == "false" else ()
    ran = run_helm(*settings, release="a" * longest)
    assert ran.returncode == 0, ran.stderr
    for each in documents(ran.stdout):
        limit = {"StatefulSet": 52, "ClusterRole": 253, "ClusterRoleBinding": 253}.get(each["kind"], 63)
        assert len(each["metadata"]["name"]) <= limit, each["kind"]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("services.api.replica=3", "replica"),
        ("nameOverride=x", "nameOverride"),
        ("nats.bundled=false", "nats.host"),
        ("nats.host=nats.example.org", "nats.bundled=false"),
        ("nats.tls=true", "nats.bundled=false"),
        ("postgres.bundled=false", "postgres.host"),
        ("postgres.host=db.example.org", "postgres.bundled=false"),
        ("postgres.options=sslmode=verify-full", "postgres.bundled=false"),
        ("ingress.enabled=true", "ingress.host"),
        ("ingress.annotations.a=true", "annotations"),
        ("service.type=ExternalName", "service/type"),
        ("projects.namespace=elearn", "control plane"),
        ("projects.namespace=-{project}", "namespace"),
        ("projects.namespace=work-", "namespace"),
        ("systemNamespace=elearn", "systemNamespace"),
        ("modelStore=somewhere", "modelStore"),
        ("imagePullPolicy=Sometimes", "imagePullPolicy"),
        ("codePort=70000", "codePort"),
        ("codePort=8471", "codePort"),
        ("projects.mayBeRoot={Search}", "mayBeRoot"),
        ("env.lower=1", "lower"),
        ("env.ELEARN_HEALTH_PORT=1", "ELEARN_HEALTH_PORT is set by the chart"),
        ("services.registry.env.ELEARN_KUBERNETES_MODEL_STORE=claim:a", "ELEARN_KUBERNETES_MODEL_STORE is set by"),
        ("env.NATS_PASSWORD=x", "NATS_PASSWORD is set by the chart"),
        ("labels.app\\.kubernetes\\.io/name=x", "app.kubernetes.io/name"),
        ("affinity.podAntiaffinity.x=y", "podAntiaffinity"),
        ("networkPolicies.dnsPorts={}", "dnsPorts"),
        ("env=null", "env"),
        ("services.api.env=null", "env"),
        ("projects=null", "projects"),
        ("modelStore=null", "modelStore"),
        ("extraRules=null", "extraRules"),
    ],
)
def test_what_can_not_be_meant_is_refused(setting: str, words: str) -> None:
    _refused(words, setting)


def test_projects_that_share_a_namespace_can_not_be_named() -> None:
    _refused("projects.only", "projects.namespace=work", "projects.only={search}")


@pytest.mark.parametrize("release", ["a" * 44, "a.b", "1a"])
def test_a_release_is_named_so_that_its_objects_can_be(release: str) -> None:
    _refused("the release's name", release=release)


# -- helpers ----------------------------------------------------------------------------------------------------------


def _refused(words: str, *settings: str, release: str = "elearn") -> None:
    ran = run_helm(*settings, release=release)
    assert ran.returncode != 0
    assert words in ran.stderr
    assert "nil pointer" not in ran.stderr


def _selectors(manifests: tuple[Manifest, ...]) -> dict[tuple[str, str], object]:
    return {
        (each["kind"], each["metadata"]["name"]): each["spec"]["selector"]
        for each in of_kind(manifests, "Deployment", "StatefulSet", "Service", "PodDisruptionBudget")
    }
