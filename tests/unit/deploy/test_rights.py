"""No right to change anything is given that a driver does not ask for; test_rights_of_rooms holds what each needs."""

from pathlib import Path

import pytest
import yaml

from shared.kube import Cluster
from tests.unit.kube.conftest import cluster, server
from tests.unit.kube.test_rights_of_rooms import EVERYWHERE, SOME, needed

__all__ = ["cluster", "server"]

RIGHTS = Path(__file__).parents[3] / "deploy" / "kubernetes" / "chart" / "files" / "rights.yaml"
READING = {"get", "list", "watch"}


@pytest.mark.parametrize("room", ["scheduler", "datastore", "registry", "serving"])
async def test_no_right_to_change_anything_is_given_for_nothing(room: str, cluster: Cluster) -> None:
    wanted = set()
    for settings in (EVERYWHERE, SOME):
        for right in needed(room, cluster, settings):
            plural = f"{right.resource.plural}/{right.subresource}" if right.subresource else right.resource.plural
            wanted.add((plural, right.verb))
    own = yaml.safe_load(RIGHTS.read_text())[room]
    given = {
        (resource, verb)
        for rules in own.values()
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert {(resource, verb) for resource, verb in given if verb not in READING} <= wanted
    assert {resource for resource, _ in given} <= {resource for resource, _ in wanted}
