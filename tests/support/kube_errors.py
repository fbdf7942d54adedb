"""Answers that refuse, in the words of an API server: a status object, its code and its reason."""

from typing import Any

from shared.kube.resources import Resource
from tests.support.kube_fields import Document


class ApiError(Exception):
    """An answer that refuses."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status: Document = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "details": details,
            "code": code,
        }


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(
        404,
        "NotFound",
        f'{_full(resource)} "{name}" not found',
        name=name,
        group=resource.group,
        kind=resource.plural,
    )


def already_exists(resource: Resource, live: Document) -> ApiError:
    name = live["metadata"]["name"]
    ending = "object is being deleted: " if live["metadata"].get("deletionTimestamp") else ""
    words = f'{ending}{_full(resource)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", words, name=name, group=resource.group, kind=resource.plural)


def conflict(resource: Resource, name: str, why: str) -> ApiError:
    """An update or a deletion of an object that is not the one that was meant."""
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {_full(resource)} "{name}": {why}',
        name=name,
        group=resource.group,
        kind=resource.plural,
    )


def apply_conflict(resource: Resource, fields: list[tuple[str, str]]) -> ApiError:
    """An apply of fields that others own: each field with its manager."""
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{who}" using {resource.api_version}',
            "field": field,
        }
        for field, who in fields
    ]
    told = ", ".join(f'conflict with "{who}": {field}' for field, who in fields)
    return ApiError(409, "Conflict", f"Apply failed with {len(causes)} conflict(s): {told}", causes=causes)


def invalid(resource: Resource, name: str, problems: list[tuple[str, str]]) -> ApiError:
    """An object with problems: each with its field."""
    told = ", ".join(f"{field}: {words}" for field, words in problems)
    causes = [{"reason": "FieldValueInvalid", "message": words, "field": field} for field, words in problems]
    full = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    return ApiError(
        422,
        "Invalid",
        f'{full} "{name}" is invalid: {told}',
        name=name,
        group=resource.group,
        kind=resource.kind,
        causes=causes,
    )


def namespace_terminating(resource: Resource, name: str, namespace: str) -> ApiError:
    return ApiError(
        403,
        "Forbidden",
        f'{_full(resource)} "{name}" is forbidden: unable to create new content in namespace {namespace}'
        " because it is being terminated",
        name=name,
        kind=resource.plural,
        causes=[
            {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
        ],
    )


def _full(resource: Resource) -> str:
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural
