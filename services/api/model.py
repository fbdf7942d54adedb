"""Who may do what: principals, tokens, projects and the audit log. Pure."""

import hashlib
import hmac
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from shared.contracts.common import DEFAULT_PROJECT, Instant, Name, parse_duration
from shared.contracts.identity import Scope, TokenSpec
from shared.errors import Invalid

ADMIN: Final = "admin"
"""The name of who holds the token of ``ELEARN_ADMIN_TOKEN_FILE``."""

TOKEN_PREFIX: Final = "elearn_"  # noqa: S105 - what a secret begins with, so that scanners find leaked ones
DELETION_SECONDS: Final = 60.0
"""After this long, a deletion of a project that never ended (its gateway died) no longer counts."""

Reach = Literal["project", "any", "everywhere"]
"""What a route touches: one project; nothing that a project owns; or things of every project."""

_RANK: Final[dict[Scope, int]] = {"read": 0, "write": 1, "admin": 2}


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks.

    Attributes:
        projects: where; empty is everywhere.
    """

    name: str
    scope: Scope
    projects: tuple[str, ...] = ()

    def sees(self, project: str) -> bool:
        """Whether this principal may know of a project."""
        return not self.projects or project in self.projects


class StoredToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is kept: never its secret."""

    name: Name
    scope: Scope
    created_at: Instant
    projects: tuple[Name, ...] = ()
    expires_at: Instant | None = None
    created_by: str = ""

    def principal(self) -> Principal:
        """Who holds it."""
        return Principal(name=self.name, scope=self.scope, projects=self.projects)

    def expired(self, now: datetime) -> bool:
        """Whether it has ceased to be good."""
        return self.expires_at is not None and now >= self.expires_at


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change that somebody asked for, and how it was answered.

    Attributes:
        actor: name of the token; empty where none was shown or it was not good.
        status: the HTTP status of the answer; 499: the caller went away before.
        trace: trace id of the request, as in the logs and events that it led to.
    """

    at: Instant
    actor: str
    method: str
    path: str
    status: int
    project: str = ""
    trace: str = ""


def digest_of(secret: str) -> bytes:
    """What is kept of a token's secret. Secrets are long and random, so one plain hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


def is_same(one: bytes, other: bytes) -> bool:
    """Compare digests in a time that tells nothing of them."""
    return hmac.compare_digest(one, other)


def bearer_of(header: str | None) -> str | None:
    """The token in an ``Authorization`` header, or None where there is none to be had."""
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret or len(secret) > 512 or not secret.isascii():
        return None
    return secret


def refusal(principal: Principal, scope: Scope, reach: Reach, project: str) -> str | None:
    """Why a principal may not do something, in words; None: it may."""
    if _RANK[principal.scope] < _RANK[scope]:
        return (
            f"token {principal.name!r} has the scope {principal.scope!r}, and this needs {scope!r}; use another token"
        )
    if reach == "project" and not principal.sees(project):
        return f"token {principal.name!r} is not good for project {project!r}; use another token"
    if reach == "everywhere" and principal.projects:
        return (
            f"token {principal.name!r} is good for {', '.join(principal.projects)} only, "
            "and this concerns every project; use another token"
        )
    return None


def make_token(spec: TokenSpec, by: str, now: datetime) -> StoredToken:
    """The token that a spec asks for.

    Raises:
        Invalid: its lifetime can't be read, or its name is taken by the operator's token.
    """
    if spec.name == ADMIN:
        raise Invalid.field("name", f"{ADMIN!r} is the operator's own token; choose another name")
    expires_at = None
    if spec.lifetime is not None:
        try:
            expires_at = now + timedelta(seconds=parse_duration(spec.lifetime))
        except ValueError as error:
            raise Invalid.field("lifetime", str(error)) from None
    return StoredToken(
        name=spec.name,
        scope=spec.scope,
        created_at=now,
        projects=tuple(dict.fromkeys(spec.projects)),
        expires_at=expires_at,
        created_by=by,
    )


def keep_reason(project: str, owned: dict[str, tuple[str, ...]]) -> str | None:
    """Why a project can't be deleted, or None.

    Args:
        owned: by noun, some of the things that the project still owns.
    """
    if project == DEFAULT_PROJECT:
        return f"project {DEFAULT_PROJECT!r} always exists; delete what is in it instead"
    left = [f"{noun} {', '.join(names)}" for noun, names in owned.items() if names]
    if left:
        return f"project {project!r} still owns {'; '.join(left)}: delete these first"
    return None


def deletion_stands(deleting_at: datetime | None, now: datetime) -> bool:
    """Whether a deletion that began at ``deleting_at`` is still under way."""
    return deleting_at is not None and (now - deleting_at).total_seconds() < DELETION_SECONDS
