"""Numbers of replicas that follow the load: what may be asked for, and what a serving makes of it."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest
from msgspec.structs import replace

from services.serving.errors import NoAutoscaling
from services.serving.handlers import Handlers
from services.serving.model import Change, Choice, Observed, Replica, Source, StoredServing, created, decide
from services.serving.reconcile import deployment_of
from services.serving.views import view
from shared.contracts.datastore import LocalVolume
from shared.contracts.serving import CreateServing, Endpoint, ServingPatch, ServingSpec, UpdateServing, serving_errors
from tests.contract.serving_cloud_fake import FakeServings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = ServingSpec(name="s", model="m", version=1, replicas=2, max_replicas=5)
ENDPOINT = Endpoint(grpc="h:1", rest="http://h:2/v1/models/m")


def ready() -> StoredServing:
    source = Source(number=1, volume=LocalVolume(path="/models"), path="m/1")
    choice = Choice(traffic={1: 100}, cause="asked", sources=(source,))
    return created(project="p", uid="u", spec=SPEC, choice=choice, actor="", traceparent="", now=NOW).serving


def seen(ready: int, starting: int = 0, *, wanted: int | None) -> Observed:
    replicas = (Replica(revision=1, state="ready"),) * ready + (Replica(revision=1, state="starting"),) * starting
    return Observed(replicas=replicas, endpoint=ENDPOINT, wanted=wanted)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, None),
        ({"max_replicas": 0, "replicas": 0}, None),
        ({"max_replicas": 2}, None),
        ({"max_replicas": 1}, "max_replicas"),
        ({"replicas": 0}, "replicas"),
    ],
)
def test_bounds(change: dict[str, Any], field: str | None) -> None:
    assert [error.field for error in serving_errors(replace(SPEC, **change))] == ([field] if field else [])


async def test_a_cloud_that_can_not_follow_the_load_says_so() -> None:
    nothing = cast("Any", None)
    handlers = Handlers(nothing, nothing, FakeServings(), nothing)
    with pytest.raises(NoAutoscaling, match="the fake cloud can't let the number of replicas follow the load"):
        await handlers.create(CreateServing(project="p", spec=SPEC))
    assert not ServingPatch(max_replicas=0).replicas
    assert UpdateServing(project="p", name="s", patch=ServingPatch(max_replicas=3)).patch.max_replicas == 3


def test_the_cloud_is_told_the_bounds() -> None:
    deployment = deployment_of(ready())
    assert (deployment.replicas, deployment.max_replicas, deployment.cpu_percent) == (2, 5, 70)


def test_more_replicas_on_their_way_do_not_make_a_serving_worse() -> None:
    serving = decide(ready(), seen(2, wanted=2), NOW).serving
    assert serving.state == "ready"
    grown = decide(serving, seen(2, 2, wanted=4), NOW)
    assert (grown.serving.state, grown.events) == ("ready", ())
    assert view(grown.serving).replicas == 4
    fewer = decide(grown.serving, seen(1, 3, wanted=4), NOW).serving
    assert fewer.state == "degraded"
    fixed = decide(grown.serving, Change(max_replicas=0), NOW).serving
    assert (fixed.state, fixed.spec.max_replicas) == ("deploying", 0)
    assert view(decide(fixed, seen(2, wanted=None), NOW).serving).replicas == 2
