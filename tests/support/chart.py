"""Manifests of the chart, rendered by a real helm; the committed ones where there is none."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "kubernetes" / "chart"
COMMITTED = ROOT / "deploy" / "kubernetes" / "elearn.yaml"

Manifest = dict[str, Any]


def helm() -> str:
    """The program; skips the test where there is none."""
    own = ROOT / ".tools" / "bin" / "helm"
    found = str(own) if own.exists() else shutil.which("helm")
    if found is None:
        pytest.skip("helm is not installed: `make .tools/bin/helm` fetches it")
    return found


def run_helm(
    *settings: str, namespace: str = "elearn", release: str = "elearn", values: Mapping[str, Any] | None = None
) -> "subprocess.CompletedProcess[str]":
    """`helm template` with these --set arguments, and values as a file holds them."""
    options = [part for each in settings for part in ("--set", each)]
    command = [helm(), "template", release, str(CHART), "--namespace", namespace, *options]
    if values is not None:
        command += ["--values", "-"]
    given = json.dumps(values or {})
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=False)


@cache
def rendered(*settings: str) -> tuple[Manifest, ...]:
    """What the chart makes with these settings."""
    ran = run_helm(*settings)
    assert ran.returncode == 0, ran.stderr
    return documents(ran.stdout)


def rendered_from(values: Mapping[str, Any]) -> tuple[Manifest, ...]:
    """What the chart makes with a file of values."""
    ran = run_helm(values=values)
    assert ran.returncode == 0, ran.stderr
    return documents(ran.stdout)


@cache
def committed() -> tuple[Manifest, ...]:
    """What is committed for whoever has no helm."""
    return documents(COMMITTED.read_text())


def documents(text: str) -> tuple[Manifest, ...]:
    """The documents of a stream."""
    return tuple(each for each in yaml.safe_load_all(text) if each)


def of_kind(manifests: tuple[Manifest, ...], *kinds: str) -> list[Manifest]:
    """Those of some kinds."""
    return [each for each in manifests if each["kind"] in kinds]


def environment_of(manifests: tuple[Manifest, ...], name: str) -> dict[str, str]:
    """The environment of the only container of a pod, by what makes the pod."""
    (container,) = pod_templates(manifests)[name]["spec"]["containers"]
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names))
    return {each["name"]: each.get("value", "") for each in container["env"]}


def pod_templates(manifests: tuple[Manifest, ...]) -> dict[str, Manifest]:
    """Pod templates, by the name of what makes the pods."""
    makers = of_kind(manifests, "Deployment", "StatefulSet", "Job")
    return {each["metadata"]["name"]: each["spec"]["template"] for each in makers}
