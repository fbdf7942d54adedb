"""Manifests: plain documents that are sent to the API, marked as ours before they go. Pure."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from shared.errors import Internal
from shared.kube.names import labels_of
from shared.kube.resources import Resource, resource_of

Manifest = Mapping[str, object]
"""An object as the API takes it: ``apiVersion``, ``kind``, ``metadata``, and what its kind has."""


Propagation = Literal["Background", "Foreground", "Orphan"]
"""What becomes of the objects that a deleted one owns: they go after it, before it, or stay."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What of a manifest decides where it is sent."""

    resource: Resource
    namespace: str | None
    name: str


class _Metadata(msgspec.Struct, frozen=True, kw_only=True):
    name: str = ""
    namespace: str | None = None


class _Head(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    api_version: str
    kind: str
    metadata: _Metadata


def head_of(manifest: Manifest, default_namespace: str) -> Head:
    """Where a manifest belongs.

    Raises:
        Internal: it has no kind that we know, or no name: a driver's own fault.
    """
    try:
        head = msgspec.convert(manifest, _Head)
        resource = resource_of(head.api_version, head.kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise Internal(f"a manifest of ours can't be sent: {error}") from None
    namespace = (head.metadata.namespace or default_namespace) if resource.namespaced else None
    return Head(resource=resource, namespace=namespace, name=head.metadata.name)


def marked(manifest: Manifest, installation: str) -> dict[str, object]:
    """The manifest with the labels of our installation, on the object and on the pods that it makes."""
    ours = _labelled(manifest, installation)
    spec = ours.get("spec")
    if isinstance(spec, Mapping) and isinstance(template := spec.get("template"), Mapping) and "spec" in template:
        ours["spec"] = {**spec, "template": _labelled(template, installation)}
    return ours


def _labelled(part: Mapping[str, object], installation: str) -> dict[str, object]:
    metadata = part.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise Internal(f"metadata of a manifest of ours is {type(metadata).__name__}")
    labels = metadata.get("labels") or {}
    return {**part, "metadata": {**metadata, "labels": {**labels, **labels_of(installation)}}}


def delete_options(propagation: Propagation, grace: int | None) -> dict[str, object]:
    """The body of a deletion."""
    options: dict[str, object] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
    if grace is not None:
        options["gracePeriodSeconds"] = grace
    return options
