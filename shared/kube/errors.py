"""What the Kubernetes API answers when it refuses, as errors of our tree; mapped here and nowhere else.

Unavailable                   try again; what can't be seen is never taken for failed
├── Unreachable               no answer: refused, cut, timed out, no certificate to trust
├── Busy                      429: the server is shedding load
├── CredentialsRefused        401, also after the credentials were read again
└── Expired                   410: a resourceVersion or a page is too old; list again
Forbidden
├── MissingRight              RBAC: who may not do what, where
├── QuotaExceeded             a ResourceQuota of the namespace is used up
└── PolicyRefused             pod security, a limit range, an admission webhook
NotFound
└── NamespaceMissing          the namespace does not exist
Conflict
├── AlreadyExists
├── FieldConflict             server-side apply: a field belongs to somebody else
├── Foreign                   the object belongs to another elearn installation, or to nobody of us
└── Terminating               the object or its namespace is being deleted
Unsupported
└── KindMissing               this cluster does not serve that kind
Invalid, TooLarge, Internal   as everywhere
"""

import re
from typing import Final

import msgspec

from shared.contracts.problem import FieldError
from shared.errors import (
    Conflict,
    ElearnError,
    Forbidden,
    Internal,
    Invalid,
    NotFound,
    TooLarge,
    Unavailable,
    Unsupported,
)


class Unreachable(Unavailable):
    """The API server gave no answer.

    Attributes:
        unsent: the request certainly never reached it, so that even what is not idempotent may be repeated.
    """

    def __init__(self, detail: str, *, retry: int = 5, unsent: bool = False) -> None:
        super().__init__(detail, retry=retry)
        self.unsent = unsent


class Busy(Unavailable):
    """The server sheds load.

    Attributes:
        pause: seconds that it asks us to wait; it may be nothing.
    """

    def __init__(self, detail: str, *, pause: float = 1.0) -> None:
        super().__init__(detail, retry=max(1, round(pause)))
        self.pause = pause


class CredentialsRefused(Unavailable):
    pass


class Expired(Unavailable):
    pass


class MissingRight(Forbidden):
    """An RBAC rule is missing.

    Attributes:
        verb, plural, group: what is not allowed: ``list``, ``pods``, an API group or "" for the core.
        namespace: where, or None for the whole cluster.
    """

    def __init__(self, *, user: str, verb: str, plural: str, group: str, namespace: str | None) -> None:
        where = f"in namespace {namespace}" if namespace else "in the whole cluster"
        of = f"{plural}.{group}" if group else plural
        rule = f"a {'Role' if namespace else 'ClusterRole'} with the verb {verb} on {of}"
        super().__init__(f"Kubernetes does not let {user} {verb} {of} {where}: give it {rule}")
        self.verb, self.plural, self.group, self.namespace = verb, plural, group, namespace


class QuotaExceeded(Forbidden):
    pass


class PolicyRefused(Forbidden):
    pass


class NamespaceMissing(NotFound):
    pass


class AlreadyExists(Conflict):
    pass


class FieldConflict(Conflict):
    """Fields that we would change belong to other managers.

    Attributes:
        owners: dotted path of each field, and the manager that owns it.
    """

    def __init__(self, detail: str, owners: dict[str, str]) -> None:
        super().__init__(
            detail, [FieldError(field=field, message=f"is owned by {who}") for field, who in owners.items()]
        )
        self.owners = owners


class Foreign(Conflict):
    pass


class Terminating(Conflict):
    pass


class KindMissing(Unsupported):
    pass


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of the API, for the sentence that tells of its refusal."""

    verb: str
    plural: str = ""
    group: str = ""
    namespace: str | None = None
    name: str | None = None

    def __str__(self) -> str:
        what = f"{self.plural}/{self.name}" if self.name else self.plural
        return f"{self.verb} {what}" + (f" in namespace {self.namespace}" if self.namespace else "")


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One cause in a Status."""

    reason: str = ""
    message: str = ""
    field: str = ""


class Details(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Particulars of a Status."""

    name: str = ""
    group: str = ""
    kind: str = ""
    causes: tuple[Cause, ...] | None = None
    retry_after_seconds: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The API's own error object."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: Details | None = None

    @property
    def causes(self) -> tuple[Cause, ...]:
        return (self.details.causes or ()) if self.details else ()


_RBAC: Final = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<plural>[^"]*)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)
_OWNER: Final = re.compile(r'conflict with "(?P<manager>[^"]*)"')
_UNKNOWN_FIELD: Final = re.compile(r'unknown field "([^"]+)"')
_WORDS: Final = 500  # of a server's message, what a person is shown at the most


def read_status(code: int, body: bytes) -> Status:
    """The Status in an answer's body; what is not one (a proxy's page) becomes its message."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = " ".join(body.decode(errors="replace").split())
        return Status(code=code, message=text[:_WORDS])
    return msgspec.structs.replace(status, code=status.code or code, message=status.message[: 8 * _WORDS])


def error_of(status: Status, asked: Asked, *, retry_after: float | None = None) -> ElearnError:
    """The error that a Status stands for.

    Args:
        retry_after: seconds from the answer's Retry-After header.
    """
    words = f"Kubernetes, asked to {asked}: {status.message[:_WORDS] or status.reason or f'HTTP {status.code}'}"
    told = status.details.retry_after_seconds if status.details else 0
    wait = retry_after if retry_after is not None else told or None
    retry = 2 if wait is None else max(1, round(wait))
    match status.code:
        case 401:
            said = status.message or "Unauthorized"
            return CredentialsRefused(f"Kubernetes refuses our credentials ({said}): renew the kubeconfig's", retry=30)
        case 403:
            return _forbidden(status, words)
        case 404:
            return _not_found(status, asked, words)
        case 409:
            return _conflict(status, words)
        case 410:
            return Expired(words)
        case 413:
            return TooLarge(words)
        case 400 | 422:
            return _invalid(status, words)
        case 429:
            return Busy(words, pause=1.0 if wait is None else wait)
        case code if code >= 500:
            return Unavailable(words, retry=retry)
        case _:
            return Internal(f"{words} (HTTP {status.code})")


def _forbidden(status: Status, words: str) -> ElearnError:
    if found := _RBAC.search(status.message):
        return MissingRight(
            user=found["user"],
            verb=found["verb"],
            plural=found["plural"],
            group=found["group"],
            namespace=found["namespace"] or None,
        )
    if any(cause.reason == "NamespaceTerminating" for cause in status.causes):
        return Terminating(words)
    if "exceeded quota" in status.message or "failed quota" in status.message:
        return QuotaExceeded(words)
    return PolicyRefused(words)


def _not_found(status: Status, asked: Asked, words: str) -> ElearnError:
    kind = status.details.kind if status.details else ""
    if kind == "namespaces" and asked.plural != "namespaces" and status.details:
        return NamespaceMissing(
            f"namespace {status.details.name} does not exist: create it, or name another one for elearn to work in"
        )
    if not kind or not asked.name:
        return KindMissing(f"this cluster does not serve {asked.plural}.{asked.group or 'core'}: {words}")
    return NotFound(words)


def _conflict(status: Status, words: str) -> ElearnError:
    owners = {
        cause.field.lstrip("."): found["manager"] if (found := _OWNER.search(cause.message)) else cause.message
        for cause in status.causes
        if cause.reason == "FieldManagerConflict"
    }
    if owners:
        told = ", ".join(f"{field} ({who})" for field, who in owners.items())
        return FieldConflict(f"{words.partition(': ')[0]}: fields belong to others: {told}", owners)
    if "being deleted" in status.message or "being terminated" in status.message:
        return Terminating(words)
    if status.reason == "AlreadyExists":
        return AlreadyExists(words)
    return Conflict(words)


def _invalid(status: Status, words: str) -> ElearnError:
    errors = [FieldError(field=cause.field, message=cause.message) for cause in status.causes if cause.field]
    errors += [FieldError(field=field, message="unknown field") for field in _UNKNOWN_FIELD.findall(status.message)]
    return Invalid(words, errors)
