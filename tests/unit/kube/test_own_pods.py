"""Jobs of elearn's own image."""

from typing import Any

import pytest
from msgspec.structs import replace

from shared.kube.own_pods import Mounted, OwnJob, own_job
from shared.kube.settings import ProjectSettings
from tests.support.kube import assert_valid

JOB = OwnJob(
    name="save-digits-1",
    namespace="elearn-vision",
    labels={"elearn.dev/work": "save"},
    module="services.registry.cloud.kubernetes.work",
    mounts=(Mounted(claim="runs", path="/source"),),
)


def container_of(job: OwnJob, settings: ProjectSettings) -> dict[str, Any]:
    manifest: Any = own_job(job, settings)
    assert_valid(manifest)
    container: dict[str, Any] = manifest["spec"]["template"]["spec"]["containers"][0]
    return container


@pytest.mark.parametrize(
    ("limited", "cpu", "requested", "limit"),
    [
        (False, "100m", "100m", None),
        (True, "100m", "500m", "500m"),
        (True, "2", "2", "2"),
        (True, "1500m", "1500m", "1500m"),
    ],
)
def test_cpu_is_limited_where_the_operator_wants_that(
    limited: bool, cpu: str, requested: str, limit: str | None
) -> None:
    resources = container_of(replace(JOB, cpu=cpu), ProjectSettings(kubernetes_cpu_limits=limited))["resources"]
    assert resources["requests"] == {"cpu": requested, "memory": "512Mi"}
    assert resources["limits"].get("cpu") == limit
    assert resources["limits"]["memory"] == "512Mi"


def test_what_is_told_is_taken_as_it_is() -> None:
    """The kubelet fills in ``$(NAME)``, and makes one ``$`` of two."""
    (told,) = container_of(replace(JOB, env={"WORK": "/a$$b/$(HOME)/$c"}), ProjectSettings())["env"]
    assert told == {"name": "WORK", "value": "/a$$$$b/$$(HOME)/$$c"}
