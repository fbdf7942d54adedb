"""Which objects a label selector and a field selector choose. Pure."""

import re
from typing import Any

from tests.support.kube_errors import ApiError
from tests.support.kube_fields import Document


def matches(document: Document, labels: str, fields: str) -> bool:
    """Whether an object is what the selectors want."""
    given = document["metadata"].get("labels") or {}
    return all(_label_matches(given, term) for term in _terms(labels)) and all(
        _field_matches(document, term) for term in _terms(fields)
    )


def _terms(selector: str) -> list[str]:
    return [term.strip() for term in re.split(r",(?![^(]*\))", selector) if term.strip()]


def _label_matches(labels: Document, term: str) -> bool:
    if found := re.fullmatch(r"(\S+) (in|notin) \(([^)]*)\)", term):
        key, how, values = found.groups()
        is_in = labels.get(key) in [value.strip() for value in values.split(",")]
        return is_in if how == "in" else not is_in
    if found := re.fullmatch(r"([^!=]+)(==|=|!=)(.*)", term):
        key, how, value = found.groups()
        return bool(labels.get(key) != value) if how == "!=" else bool(labels.get(key) == value)
    return term[1:] not in labels if term.startswith("!") else term in labels


def _field_matches(document: Document, term: str) -> bool:
    found = re.fullmatch(r"([^!=]+)(==|=|!=)(.*)", term)
    if found is None:
        raise ApiError(400, "BadRequest", f'invalid field selector "{term}"')
    path, how, value = found.groups()
    at: Any = document
    for part in path.split("."):
        at = at.get(part, "") if isinstance(at, dict) else ""
    return bool(at != value) if how == "!=" else bool(at == value)
