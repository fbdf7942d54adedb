"""What an object goes through before it is kept: preparation and validation, when it is made and when it changes. Pure.

Preparation sets what is the API server's to set; validation refuses what every supported Kubernetes would refuse.
"""

import copy
import re
from typing import Any
from uuid import uuid4

from shared.kube.resources import JOBS, NAMESPACES, PERSISTENT_VOLUME_CLAIMS, PODS, SERVICES, Resource
from tests.support.kube import schema_errors
from tests.support.kube_errors import ApiError, invalid
from tests.support.kube_fields import Document

_IMMUTABLE: dict[str, tuple[str, ...]] = {
    "jobs": ("spec.template", "spec.selector", "spec.completionMode", "spec.podFailurePolicy"),
    "deployments": ("spec.selector",),
    "persistentvolumeclaims": ("spec.accessModes", "spec.storageClassName", "spec.volumeName", "spec.volumeMode"),
    "services": ("spec.clusterIP",),
    "storageclasses": ("provisioner", "parameters"),
}
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def validate(resource: Resource, name: str, document: Document, *, schemas: bool) -> None:
    """Refuse a document that can't be such an object; ``schemas``: by the published schemas too."""
    problems = []
    strict = resource in (PODS, SERVICES, JOBS) or resource == NAMESPACES
    if not (_DNS_LABEL if strict else _DNS_NAME).fullmatch(name):
        problems.append(("metadata.name", f'Invalid value: "{name}": must be no more than 63 characters, a DNS label'))
    if resource == SERVICES and not name[:1].isalpha():
        problems.append(("metadata.name", f'Invalid value: "{name}": a DNS-1035 label must start with a letter'))
    problems += [
        ("metadata.labels", f'Invalid value: "{value}": a valid label must be at most 63 characters')
        for value in (document.get("metadata", {}).get("labels") or {}).values()
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value)
    ]
    if schemas:
        problems += [("", error) for error in schema_errors(document)]
    unknown = [found[1] for _, words in problems if (found := re.search(r"\('(\w+)' was unexpected", words))]
    if unknown:
        told = ", ".join(f'unknown field "{field}"' for field in dict.fromkeys(unknown))
        raise ApiError(400, "BadRequest", f"strict decoding error: {told}")
    if problems:
        raise invalid(resource, name, problems)


def prepared_for_create(
    resource: Resource, namespace: str, document: Document, *, stamp: str, revision: int
) -> Document:
    """A new object as it is kept; addresses of services are told apart by the revision."""
    new = copy.deepcopy(document)
    new["apiVersion"], new["kind"] = resource.api_version, resource.kind
    metadata = new["metadata"]
    if resource.namespaced:
        metadata["namespace"] = namespace
    metadata.setdefault("uid", str(uuid4()))
    metadata["creationTimestamp"] = stamp
    metadata["generation"] = 1
    if resource == SERVICES:
        new.setdefault("spec", {}).setdefault("clusterIP", f"10.96.{revision // 250 % 250}.{revision % 250}")
    if resource == PERSISTENT_VOLUME_CLAIMS:
        new.setdefault("status", {"phase": "Pending"})
    if resource == PODS:
        new.setdefault("status", {"phase": "Pending"})
    return new


def prepared_for_update(resource: Resource, live: Document, new: Document) -> Document:
    """A changed object as it is kept; refused if it changes what may not change."""
    metadata = {**new.get("metadata", {})}
    for field in ("uid", "creationTimestamp", "generation", "namespace", "deletionTimestamp"):
        if field in live["metadata"]:
            metadata[field] = live["metadata"][field]
    if new.get("spec") != live.get("spec"):
        metadata["generation"] = live["metadata"].get("generation", 0) + 1
    new = {**new, "apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata}
    problems = [
        (field, "Invalid value: field is immutable")
        for field in _IMMUTABLE.get(resource.plural, ())
        if _at(live, field) is not None and _at(new, field) != _at(live, field)
    ]
    if problems:
        raise invalid(resource, metadata["name"], problems)
    return new


def _at(document: Document, dotted: str) -> Any:
    value: Any = document
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
