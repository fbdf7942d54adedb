"""Servings: a stable endpoint that serves a model's version or alias."""

from typing import Annotated, Literal

import msgspec

from shared.contracts.common import (
    Done,
    Instant,
    Labels,
    ListRequest,
    Name,
    Named,
    Page,
    Quantity,
    label_errors,
)
from shared.contracts.model import VersionNumber
from shared.contracts.problem import FieldError
from shared.contracts.rpc import Verb

ServingState = Literal["deploying", "ready", "degraded", "failed"]
Replicas = Annotated[int, msgspec.Meta(ge=0, le=1000)]


class ServingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a user asks for: a model by version or by alias, and how many replicas.

    Attributes:
        alias: follows the alias when it moves.
        max_replicas: the number of replicas follows the load, from ``replicas`` up to this one; 0: it stays.
            A cloud that can't do that refuses it and says so.
        cpu_percent: of the CPU that replicas asked for, what they shall use then on average.
        cpu, memory, gpu: for each replica.
    """

    name: Name
    model: Name
    kind: Literal["serving"] = "serving"
    version: VersionNumber | None = None
    alias: Name | None = None
    replicas: Replicas = 1
    max_replicas: Replicas = 0
    cpu_percent: Annotated[int, msgspec.Meta(ge=1, le=100)] = 70
    cpu: Quantity | None = None
    memory: Quantity | None = None
    gpu: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    labels: Labels = {}


class ServingPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``PATCH`` may change; None leaves a field as it is.

    Attributes:
        version: pin to this version (and no longer follow an alias).
        alias: follow this alias (and no longer be pinned).
        max_replicas: let the number of replicas follow the load up to this one; 0: no longer.
        traffic: per cent of requests for each version, by number, together 100. A cloud that can't
            split traffic refuses it and says so.
    """

    version: VersionNumber | None = None
    alias: Name | None = None
    replicas: Replicas | None = None
    max_replicas: Replicas | None = None
    traffic: dict[str, int] | None = None


class Endpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a serving is reached.

    Attributes:
        grpc: ``host:port`` that speaks TensorFlow Serving's gRPC API.
        rest: base URL of the model on TensorFlow Serving's REST API: ``POST {rest}:predict``.
        internal_rest: the same by a name within the cluster, where elearn itself runs in it and the others are
            addresses for clients outside.
    """

    grpc: str
    rest: str
    internal_rest: str = ""


class Revision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rolled-out choice of version; a change of version makes the next one.

    Attributes:
        version: the one that gets most of the requests.
        traffic: per cent of requests for each version, by number, where there are several.
    """

    number: int
    version: VersionNumber
    created_at: Instant
    state: Literal["deploying", "ready", "failed", "superseded"]
    reason: str = ""
    cause: str = ""
    ready_at: Instant | None = None
    traffic: dict[str, int] = {}


class Serving(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A serving as users see it.

    Attributes:
        version: the version that answers now; None before the first is up.
        replicas: how many there shall be: as asked for, or as the load wants it.
        ready_replicas: replicas that answer now.
        revisions: newest first, the last twenty.
        traffic: per cent of requests for each version that answers now, where there are several.
    """

    project: Name
    name: Name
    spec: ServingSpec
    state: ServingState
    created_at: Instant
    replicas: int
    reason: str = ""
    created_by: str = ""
    version: VersionNumber | None = None
    ready_replicas: int = 0
    endpoint: Endpoint | None = None
    revision: int = 0
    revisions: tuple[Revision, ...] = ()
    ready_at: Instant | None = None
    traffic: dict[str, int] = {}


class ServingEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.serving.<event>.<project>.<name>``."""

    serving: Serving


class CreateServing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    spec: ServingSpec


class UpdateServing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    name: Name
    patch: ServingPatch


class RollbackServing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Back to ``revision``, or to the last good one before the current."""

    project: Name
    name: Name
    revision: int | None = None


CREATE = Verb("serving", "create", CreateServing, Serving)
GET = Verb("serving", "get", Named, Serving)
LIST = Verb("serving", "list", ListRequest, Page[Serving])
UPDATE = Verb("serving", "update", UpdateServing, Serving)
ROLLBACK = Verb("serving", "rollback", RollbackServing, Serving)
DELETE = Verb("serving", "delete", Named, Done)


def serving_errors(spec: ServingSpec) -> list[FieldError]:
    """What is wrong with a spec in any cloud."""
    errors = label_errors("labels", spec.labels)
    if (spec.version is None) == (spec.alias is None):
        errors.append(FieldError(field="version", message="give either a version or an alias"))
    return errors + scaling_errors(spec)


def scaling_errors(spec: ServingSpec) -> list[FieldError]:
    """What is wrong with the bounds of the number of replicas."""
    if not spec.max_replicas:
        return []
    if not spec.replicas:
        return [FieldError(field="replicas", message="must be at least 1 where max_replicas is given")]
    if spec.max_replicas < spec.replicas:
        words = f"must be at least as many as replicas ({spec.replicas})"
        return [FieldError(field="max_replicas", message=words)]
    return []
