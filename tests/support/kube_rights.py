"""What the chart's roles let a service do, for an emulated cluster to hold it to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from shared.kube.access import Right

Rule = dict[str, Any]

_FILE: Final = Path(__file__).parents[2] / "deploy" / "kubernetes" / "chart" / "files" / "rights.yaml"

FORWARDING: Final[Rule] = {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]}
"""Needed from outside the cluster only, where the chart is not."""


def rules_of(room: str, *, everywhere: bool = True, only: Sequence[str] | None = None) -> dict[str, list[Rule]]:
    """The rules of a service for ``projects``, ``system`` and ``cluster``.

    Args:
        everywhere: it makes the namespaces of projects.
        only: conditions of the chart that hold; None: all that there are.
    """
    rights = yaml.safe_load(_FILE.read_text())
    own = rights[room]
    held = own.get("conditional", {})
    chosen = [held[name] for name in (held if only is None else only) if name in held]
    rules = {
        place: [*own[place], *(rule for each in chosen for rule in each.get(place, ()))]
        for place in ("projects", "system", "cluster")
    }
    if everywhere:
        rules["cluster"] += rights["namespaces"]
    return rules


def words_of(rules: Sequence[Rule]) -> set[tuple[str, str, str]]:
    """Verb, API group and plural of everything that rules allow."""
    return {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def words(right: Right) -> tuple[str, str, str]:
    """The same of what a driver asks for."""
    plural = right.resource.plural
    return right.verb, right.resource.group, f"{plural}/{right.subresource}" if right.subresource else plural


class ChartRights:
    """RBAC as the chart sets it up for some services, with projects anywhere.

    Args:
        system: the namespace that drivers keep for themselves.
        beyond: rules that an operator added for all projects.
    """

    def __init__(self, *rooms: str, system: str = "default", beyond: Sequence[Rule] = ()) -> None:
        self._system = system
        rules = [rules_of(room) for room in rooms]
        self._anywhere = words_of([rule for each in rules for rule in (*each["projects"], *each["cluster"], *beyond)])
        self._in_system = words_of([rule for each in rules for rule in each["system"]])

    def __call__(self, verb: str, group: str, plural: str, namespace: str | None) -> bool:
        asked = (verb, group, plural)
        return asked in self._anywhere or (namespace == self._system and asked in self._in_system)
