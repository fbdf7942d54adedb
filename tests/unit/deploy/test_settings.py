"""docs/settings.md is what services read, and every setting that deploy/ hands to a service is one it reads."""

import importlib
import runpy
from typing import Any

import msgspec
import pytest
import yaml

from shared.kube.settings import KubernetesSettings, ProjectSettings
from tests.support.chart import ROOT, committed, pod_templates

SERVICES = ("api", "scheduler", "datastore", "registry", "serving")
MACHINE = {"ELEARN_CPUS", "ELEARN_MEMORY"}
"""Read by shared.local.machine."""


def _known(service: str) -> set[str]:
    own = importlib.import_module(f"services.{service}.settings").Settings
    kinds: list[type[msgspec.Struct]] = [own, KubernetesSettings, ProjectSettings]
    if (ROOT / "services" / service / "cloud" / "kubernetes" / "options.py").exists():
        options = vars(importlib.import_module(f"services.{service}.cloud.kubernetes.options")).values()
        kinds += [each for each in options if isinstance(each, type) and "ELEARN_<" in (each.__doc__ or "")]
    return MACHINE | {f"ELEARN_{field.name.upper()}" for kind in kinds for field in msgspec.structs.fields(kind)}


def _compose(file: str = "docker-compose.yml") -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return found


def test_the_page_is_up_to_date() -> None:
    document = runpy.run_path(str(ROOT / "deploy" / "settings.py"))["document"]
    assert (ROOT / "docs" / "settings.md").read_text() == document(), "run `make contracts`"


@pytest.mark.parametrize("service", SERVICES)
def test_the_chart_sets_what_the_service_reads(service: str) -> None:
    (container,) = pod_templates(committed())[f"elearn-{service}"]["spec"]["containers"]
    given = {each["name"] for each in container["env"] if each["name"].startswith("ELEARN_")}
    assert given <= _known(service)


@pytest.mark.parametrize("service", SERVICES)
def test_compose_sets_what_the_service_reads(service: str) -> None:
    given = {name for name in _compose()["services"][service]["environment"] if name.startswith("ELEARN_")}
    assert given <= _known(service)


@pytest.mark.parametrize("service", SERVICES[1:])
def test_the_kubernetes_override_hands_on_all_that_the_service_reads(service: str) -> None:
    override = _compose("deploy/compose/kubernetes.yml")["services"][service]
    read = {name for name in _known(service) if name.startswith("ELEARN_KUBERNETES_")}
    assert set(override["environment"]) == read | {"ELEARN_CLOUD", "ELEARN_KUBECONFIG"}
    assert override["environment"]["ELEARN_CLOUD"] == "kubernetes"
