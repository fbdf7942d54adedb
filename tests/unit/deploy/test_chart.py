"""What the chart makes: legal in every supported Kubernetes, restricted, probed, with no right more than needed."""

import subprocess
from typing import Any

import pytest
import yaml

from services.scheduler.cloud.kubernetes.board_manifests import board_labels
from services.scheduler.cloud.kubernetes.identity import AttemptKey, attempt_labels
from shared.kube.manifest import marked
from shared.kube.names import label_value
from tests.support import kube
from tests.support.chart import (
    CHART,
    ROOT,
    Manifest,
    committed,
    documents,
    environment_of,
    of_kind,
    pod_templates,
    rendered,
    run_helm,
)

SERVICES = ("api", "scheduler", "datastore", "registry", "serving")
EXTERNAL = (
    "nats.bundled=false",
    "nats.host=nats.example.org",
    "nats.tls=true",
    "postgres.bundled=false",
    "postgres.host=db.example.org",
    "postgres.port=6432",
    "postgres.options=sslmode=verify-full",
)
ONE_IMAGE = ("image=elearn:dev", "nats.image=", "nats.storage=", "postgres.image=", "postgres.storage=")
VARIANTS = {
    "default": (),
    "external servers": EXTERNAL,
    "one image, nothing kept": ONE_IMAGE,
    "named projects": ("projects.only={search,ads}",),
    "one namespace for all": ("projects.namespace=work",),
    "published": ("ingress.enabled=true", "ingress.host=elearn.example.org", "ingress.tlsSecret=tls"),
    "no policies": ("networkPolicies.enabled=false",),
    "peers": (
        "networkPolicies.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
        "networkPolicies.natsFrom[0].ipBlock.cidr=10.0.0.0/8",
        "networkPolicies.gatewayFrom[0].namespaceSelector.matchLabels.name=ingress",
    ),
    "settings": ("env.ELEARN_POOL_SIZE=10", "services.api.env.ELEARN_JSON_LIMIT=1000", "nats.storageClass=fast"),
    "code in Secrets": ("codePort=0",),
    "some may be root": ("projects.only={search,ads}", "projects.mayBeRoot={search}"),
    "more rights": (
        "extraRules.registry[0].apiGroups={example.org}",
        "extraRules.registry[0].resources={things}",
        "extraRules.registry[0].verbs={get}",
    ),
}


# -- without helm: what is committed ------------------------------------------------------------------------------


def test_the_committed_manifests_are_legal() -> None:
    kube.assert_valid(*committed())


def test_datastores_are_kept_off_the_very_place_where_models_are() -> None:
    said = {}
    for service in ("datastore", "registry"):
        (container,) = pod_templates(committed())[f"elearn-{service}"]["spec"]["containers"]
        said[service] = {each["name"]: each.get("value") for each in container["env"]}["ELEARN_KUBERNETES_MODEL_STORE"]
    assert said["datastore"] == said["registry"] != ""


def test_the_chart_carries_the_same_files_as_compose() -> None:
    assert (CHART / "files" / "nats.conf").read_text() == (ROOT / "deploy/nats/nats.conf").read_text()
    assert (CHART / "files" / "databases.sql").read_text() == (ROOT / "deploy/postgres/databases.sql").read_text()


@pytest.mark.parametrize("name", sorted(pod_templates(committed())))
def test_every_pod_is_restricted(name: str) -> None:
    spec = pod_templates(committed())[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert {next(iter(volume.keys() - {"name"})) for volume in spec.get("volumes", ())} <= {
        "configMap",
        "emptyDir",
        "secret",
    }
    for container in spec["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_two_replicas_with_probes_and_a_budget(service: str) -> None:
    (deployment,) = [
        each for each in of_kind(committed(), "Deployment") if each["metadata"]["name"] == f"elearn-{service}"
    ]
    assert deployment["spec"]["replicas"] == 2
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python3", "-P", "-m", f"services.{service}"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    environment = {each["name"]: each.get("value") for each in container["env"]}
    (health,) = [each["containerPort"] for each in container["ports"] if each["name"] == "health"]
    assert environment["ELEARN_HEALTH_PORT"] == str(health)
    (budget,) = [
        each for each in of_kind(committed(), "PodDisruptionBudget") if each["metadata"]["name"] == f"elearn-{service}"
    ]
    assert _selects(budget["spec"]["selector"]["matchLabels"], deployment["spec"]["template"])


def test_pods_answer_at_every_address_as_a_cluster_may_have_ipv6_alone() -> None:
    for service in SERVICES:
        assert environment_of(committed(), f"elearn-{service}")["ELEARN_HEALTH_HOST"] == "*"
    assert environment_of(committed(), "elearn-api")["ELEARN_LISTEN"] == "*:8470"
    assert environment_of(committed(), "elearn-scheduler")["ELEARN_KUBERNETES_CODE_HOST"] == "*"


def test_every_selector_finds_pods() -> None:
    templates = pod_templates(committed()).values()
    services = of_kind(committed(), "Service")
    assert len(services) == 4
    for each in services:
        found = [template for template in templates if _selects(each["spec"]["selector"], template)]
        assert len(found) == 1, each["metadata"]["name"]
        ports = {port["name"] for container in found[0]["spec"]["containers"] for port in container.get("ports", ())}
        assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports
    for each in of_kind(committed(), "NetworkPolicy"):
        wanted = each["spec"]["podSelector"].get("matchLabels", {})
        assert any(_selects(wanted, template) for template in templates), each["metadata"]["name"]


def test_no_secret_is_in_the_manifests_and_the_operators_holds_what_they_ask_for() -> None:
    assert of_kind(committed(), "Secret") == []
    text = subprocess.run(
        [ROOT / "deploy/kubernetes/make-secret"], capture_output=True, text=True, check=True, timeout=30
    )
    secret = yaml.safe_load(text.stdout)
    kube.assert_valid(secret)
    made: dict[str, str] = secret["stringData"]
    assert len(set(made.values())) == len(made)
    assert all(len(value) == 40 and value.isalnum() and value[0].isalpha() for value in made.values())
    assert _asked_of_secrets(committed()) == {(secret["metadata"]["name"], key) for key in made}


def test_the_gateway_has_no_rights_and_nobody_has_all() -> None:
    bound = {
        subject["name"]
        for each in of_kind(committed(), "RoleBinding", "ClusterRoleBinding")
        for subject in each["subjects"]
    }
    assert bound == {f"elearn-{service}" for service in SERVICES if service != "api"}
    assert pod_templates(committed())["elearn-api"]["spec"]["automountServiceAccountToken"] is False
    for role in of_kind(committed(), "Role", "ClusterRole"):
        for rule in role["rules"]:
            words = {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            assert not words & {"*", "pods/exec", "pods/attach", "escalate", "bind", "impersonate"}, role["metadata"]


def test_secrets_of_projects_are_never_read() -> None:
    for role in of_kind(committed(), "ClusterRole"):
        for rule in role["rules"]:
            if "secrets" in rule["resources"]:
                assert not {"get", "list", "watch"} & set(rule["verbs"]), role["metadata"]["name"]


def test_nobody_may_touch_the_namespace_of_the_control_plane() -> None:
    assert {each["metadata"]["namespace"] for each in of_kind(committed(), "Role")} == {"system-elearn"}


def test_every_service_may_only_be_reached_as_a_policy_says() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(committed(), "NetworkPolicy")}
    assert "ingress" not in policies["elearn-default"]
    assert policies["elearn-default"]["policyTypes"] == ["Ingress", "Egress"]
    for template in pod_templates(committed()).values():
        assert _selects(policies["elearn-default"]["podSelector"]["matchLabels"], template)
    (sources,) = policies["elearn-postgres"]["ingress"]
    assert [each["podSelector"]["matchLabels"]["elearn.dev/control"] for each in sources["from"]] == ["true"]


def _names_are_asked_at(manifests: tuple[Manifest, ...]) -> set[tuple[str, int]]:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(manifests, "NetworkPolicy")}
    (rule,) = policies["elearn-default"]["egress"]
    assert "to" not in rule
    return {(each["protocol"], each["port"]) for each in rule["ports"]}


def test_names_are_asked_also_where_dns_listens_elsewhere() -> None:
    assert _names_are_asked_at(committed()) == {(how, port) for how in ("UDP", "TCP") for port in (53, 5353)}


# -- with helm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_whatever_is_chosen_is_legal(variant: str) -> None:
    kube.assert_valid(*rendered(*VARIANTS[variant]))


def test_the_committed_manifests_are_the_charts() -> None:
    assert committed() == rendered(), "run `make manifests`"


def test_one_image_is_enough_and_nothing_need_be_kept() -> None:
    sets = of_kind(rendered(*ONE_IMAGE), "StatefulSet")
    assert [each["metadata"]["name"] for each in sets] == ["elearn-nats", "elearn-postgres"]
    for each in sets:
        pod = each["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "elearn:dev"
        assert container["command"][:4] == ["python3", "-P", "-m", "elearn.up.bundled"]
        assert pod["securityContext"]["runAsUser"] == 10001  # the image knows it: initdb asks for its name
        assert {"name": "data", "emptyDir": {}} in pod["volumes"]
        assert "volumeClaimTemplates" not in each["spec"]
    assert all("pg_isready" not in str(each) for each in sets)


_LONG = "a" * 43
RELEASES = (
    ("elearn", "elearn"),
    ("elearn", "research"),
    ("elearn", "elearn-research"),
    ("elearn-research", "elearn-research"),
    ("elearn-research", "elearn"),
    (_LONG, "research-of-everybody"),
    (_LONG, "research-of-nobody"),
)


def test_no_two_releases_meet_in_one_cluster() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for release, namespace in RELEASES:
        ran = run_helm(namespace=namespace, release=release)
        assert ran.returncode == 0, ran.stderr
        manifests = documents(ran.stdout)
        installation = environment_of(manifests, f"{release}-scheduler")["ELEARN_KUBERNETES_INSTALLATION"]
        assert label_value(installation) == installation
        assert f"elearn.dev/installation: {installation}\n" in ran.stdout, "policies let in whom the services make"
        names = {each["metadata"]["name"] for each in of_kind(manifests, "ClusterRole", "ClusterRoleBinding")}
        for name in {installation, *names}:
            assert seen.setdefault(name, (release, namespace)) == (release, namespace), name


def test_postgres_of_our_own_image_does_not_wait_for_clients_at_its_end() -> None:
    (ours,) = pod_templates(rendered(*ONE_IMAGE))["elearn-postgres"]["spec"]["containers"]
    (official,) = pod_templates(rendered())["elearn-postgres"]["spec"]["containers"]
    assert ours["lifecycle"]["preStop"]["exec"]["command"] == ["sh", "-c", "kill -INT 1"]
    assert "lifecycle" not in official, "its image names SIGINT itself"


def test_the_ordinary_release_is_known_by_its_name_alone() -> None:
    assert environment_of(committed(), "elearn-scheduler")["ELEARN_KUBERNETES_INSTALLATION"] == "elearn"


def test_external_servers_replace_the_bundled_ones() -> None:
    manifests = rendered(*EXTERNAL)
    assert of_kind(manifests, "StatefulSet") == []
    environment = environment_of(manifests, "elearn-scheduler")
    assert environment["ELEARN_NATS_URL"] == "tls://scheduler:$(NATS_PASSWORD)@nats.example.org:4222"
    assert environment["ELEARN_POSTGRES_URL"] == (
        "postgresql://scheduler:$(POSTGRES_PASSWORD)@db.example.org:6432/scheduler?sslmode=verify-full"
    )


_WITHOUT_NAMESPACE = {"nodes", "persistentvolumes", "storageclasses"}


def _beyond(manifests: tuple[Manifest, ...]) -> set[tuple[str, str]]:
    """Resource and verb of everything that is allowed in the whole cluster."""
    return {
        (resource, verb)
        for role in of_kind(manifests, "ClusterRole")
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize(
    ("setting", "places"),
    [
        ("projects.only={search,ads}", {"system-elearn", "elearn-search", "elearn-ads"}),
        ("projects.namespace=work", {"system-elearn", "work"}),
    ],
)
def test_where_projects_are_named_there_are_no_rights_elsewhere_but_for_capacity(
    setting: str, places: set[str]
) -> None:
    manifests = rendered(setting)
    assert {each["metadata"]["namespace"] for each in of_kind(manifests, "Role")} == places
    assert {each["metadata"]["name"] for each in of_kind(manifests, "Namespace")} == places
    elsewhere = {(resource, verb) for resource, verb in _beyond(manifests) if resource not in _WITHOUT_NAMESPACE}
    assert elsewhere == {("pods", verb) for verb in ("list", "watch")}
    environment = environment_of(manifests, "elearn-scheduler")
    assert environment["ELEARN_KUBERNETES_CREATE_NAMESPACES"] == "false"
    assert environment.get("ELEARN_KUBERNETES_PROJECTS") == ("search,ads" if "only" in setting else None)


def test_trainings_fetch_code_from_the_scheduler_and_nothing_else_of_it() -> None:
    environment = environment_of(committed(), "elearn-scheduler")
    (service,) = [each for each in of_kind(committed(), "Service") if each["metadata"]["name"] == "elearn-scheduler"]
    (port,) = service["spec"]["ports"]
    assert environment["ELEARN_KUBERNETES_CODE_URL"] == f"http://elearn-scheduler.elearn.svc:{port['port']}"
    assert environment["ELEARN_KUBERNETES_CODE_PORT"] == str(port["port"])
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(committed(), "NetworkPolicy")}
    (rule,) = policies["elearn-scheduler"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [port["port"]]
    task: dict[str, Any] = marked({"metadata": {"labels": attempt_labels(AttemptKey("search", "ctr", 1))}}, "elearn")
    ((source,), (board,)) = (rule["from"], policies["elearn-scheduler"]["egress"][0]["to"])
    assert source["podSelector"]["matchLabels"].items() <= task["metadata"]["labels"].items()
    shown: dict[str, Any] = marked({"metadata": {"labels": board_labels("search", "ctr")}}, "elearn")
    assert board["podSelector"]["matchLabels"].items() <= shown["metadata"]["labels"].items()


def test_code_goes_through_secrets_where_no_port_is_wanted() -> None:
    manifests = rendered("codePort=0")
    assert not [name for name in environment_of(manifests, "elearn-scheduler") if "CODE" in name]
    assert "elearn-scheduler" not in [each["metadata"]["name"] for each in of_kind(manifests, "Service")]
    (policy,) = [each for each in of_kind(manifests, "NetworkPolicy") if each["metadata"]["name"] == "elearn-scheduler"]
    assert policy["spec"]["ingress"] == []


@pytest.mark.parametrize(
    ("settings", "enforced"),
    [
        (("projects.only={search,ads}",), {"elearn-search": "restricted", "elearn-ads": "restricted"}),
        (
            ("projects.only={search,ads}", "projects.mayBeRoot={search}"),
            {"elearn-search": "baseline", "elearn-ads": "restricted"},
        ),
        (("projects.only={search}", "projects.mayBeRoot={*}"), {"elearn-search": "baseline"}),
        (("projects.namespace=work", "projects.mayBeRoot={search}"), {"work": "baseline"}),
        (
            ("projects.only={search}", "projects.mayBeRoot={*}", "projects.podSecurity=privileged"),
            {"elearn-search": "privileged"},
        ),
    ],
)
def test_who_may_be_root_may_be_it_in_the_namespace(settings: tuple[str, ...], enforced: dict[str, str]) -> None:
    manifests = rendered(*settings)
    found = {each["metadata"]["name"]: each["metadata"]["labels"] for each in of_kind(manifests, "Namespace")}
    assert {
        name: labels["pod-security.kubernetes.io/enforce"] for name, labels in found.items() if name in enforced
    } == enforced
    asked = [each.partition("=")[2].strip("{}") for each in settings if "mayBeRoot" in each]
    given = [environment_of(manifests, f"elearn-{each}").get("ELEARN_KUBERNETES_ROOT_PROJECTS") for each in SERVICES]
    assert given == [asked[0] if asked else None] * len(SERVICES)


def test_names_are_asked_where_the_values_say() -> None:
    assert _names_are_asked_at(rendered("networkPolicies.dnsPorts={5300}")) == {("UDP", 5300), ("TCP", 5300)}


# -- helpers ---------------------------------------------------------------------------------------------------------


def _selects(wanted: dict[str, str], template: Manifest) -> bool:
    labels: dict[str, str] = template["metadata"]["labels"]
    return wanted.items() <= labels.items()


def _asked_of_secrets(manifests: tuple[Manifest, ...]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "secretKeyRef" in value:
                found.add((value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]))
            if "secretName" in value:
                found.update((value["secretName"], item["key"]) for item in value["items"])
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)

    look(list(manifests))
    return found
