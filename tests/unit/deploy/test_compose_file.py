"""docker-compose.yml without an engine: nothing is open to the network, no secret has a default."""

import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.chart import ROOT

MAKE_ENV = ROOT / "deploy" / "compose" / "make-env"
SERVICES = ("api", "scheduler", "datastore", "registry", "serving")


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def services(text: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


def _made(file: Path) -> dict[str, str]:
    subprocess.run([MAKE_ENV, file], check=True, capture_output=True, timeout=30)
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def test_the_gateway_alone_is_published_and_only_to_this_machine(services: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"machine": ["${ELEARN_LISTEN_ADDRESS:-127.0.0.1}:${ELEARN_PORT:-8470}:8470"]}
    assert all("network_mode" not in service or service["network_mode"] != "host" for service in services.values())


def test_passwords_are_made_never_defaulted(text: str, tmp_path: Path) -> None:
    needed = set(re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN)\w*)", text))
    defaulted = re.findall(r"\$\{(\w*(?:PASSWORD|TOKEN)\w*):?-", text)
    assert defaulted == []
    required = set(re.findall(r"\$\{(\w+):\?run deploy/compose/make-env first\}", text))
    assert required == needed
    assert set(_made(tmp_path / "env")) == needed


def test_make_env_adds_what_is_missing_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("ELEARN_ADMIN_TOKEN=mine\nELEARN_PORT=9000\n")
    first = _made(file)
    assert (first["ELEARN_ADMIN_TOKEN"], first["ELEARN_PORT"]) == ("mine", "9000")
    assert _made(file) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secrets = [value for name, value in first.items() if name not in ("ELEARN_ADMIN_TOKEN", "ELEARN_PORT")]
    assert len(set(secrets)) == len(secrets) == 12
    assert all(re.fullmatch(r"[a-z][A-Za-z0-9]{39}", value) for value in secrets)


@pytest.mark.parametrize("name", [*SERVICES, "machine", "token"])
def test_our_containers_have_no_rights(services: dict[str, dict[str, Any]], name: str) -> None:
    assert services[name]["cap_drop"] == ["ALL"]
    assert services[name]["security_opt"] == ["no-new-privileges:true"]
    assert not services[name].get("privileged")


@pytest.mark.parametrize("name", SERVICES)
def test_services_share_one_machine_and_have_a_health_port_of_their_own(
    services: dict[str, dict[str, Any]], name: str
) -> None:
    assert services[name]["network_mode"] == services[name]["pid"] == "service:machine"
    ports = [services[each]["environment"]["ELEARN_HEALTH_PORT"] for each in SERVICES]
    assert len(set(ports)) == len(SERVICES)
    assert services[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_knows_its_own_passwords_alone(services: dict[str, dict[str, Any]], name: str) -> None:
    environment = str(services[name]["environment"])
    assert set(re.findall(r"PASSWORD_(\w+)", environment)) == {name.upper()}
