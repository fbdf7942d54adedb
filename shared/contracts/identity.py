"""Projects and tokens: who may do what. The gateway owns them; no other room asks for them."""

from typing import Annotated, Literal

import msgspec

from shared.contracts.common import Instant, Name

Scope = Literal["admin", "write", "read"]


class ProjectSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    description: Annotated[str, msgspec.Meta(max_length=500)] = ""


class Project(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tenant; ``default`` always exists."""

    name: Name
    created_at: Instant
    description: str = ""
    created_by: str = ""


class TokenSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new token may do.

    Attributes:
        name: who it is for; it appears as ``created_by`` and in the audit log.
        scope: ``read``, ``write`` (and read), or ``admin`` (projects and tokens too).
        projects: where; empty is everywhere.
        lifetime: ``30d``; None never expires.
    """

    name: Name
    scope: Scope = "write"
    projects: tuple[Name, ...] = ()
    lifetime: str | None = None


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A token as it is listed; ``secret`` is shown once, when it is made."""

    name: Name
    scope: Scope
    created_at: Instant
    projects: tuple[Name, ...] = ()
    expires_at: Instant | None = None
    created_by: str = ""
    secret: str | None = None


class ProjectEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.project.<event>.<project>.<project>``."""

    project: Project


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that a service could not handle, as ``GET /v1/deadletters`` lists it."""

    sequence: int
    subject: str
    consumer: str
    error: str
    deliveries: int
    time: Instant
    message_id: str = ""
