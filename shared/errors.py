"""The error tree that every room shares; each error knows its place in RFC 9457 (problem+json).

    ElearnError
    ├── Invalid            422  fields that can't be accepted, each by name
    │   └── Malformed      400  not even readable: not JSON, not an archive
    ├── Unauthenticated    401
    ├── Forbidden          403
    ├── NotFound           404
    ├── Conflict           409  the state of the thing forbids it
    ├── TooLarge           413
    ├── Unsupported        501  this cloud or version can't do it, and says why
    ├── Unavailable        503  try again: a database, bus or cloud is away
    ├── StorageFull        507
    └── Internal           500  our own fault; the detail says where to look

A room adds its own leaves in its ``errors.py``. Errors are mapped to answers in one place: the bus for
replies between services (:mod:`shared.bus.rpc`), the gateway for HTTP.
"""

from collections.abc import Sequence
from typing import ClassVar

from shared.contracts.problem import FieldError, Problem


class ElearnError(Exception):
    """Something a user is told in one line.

    Args:
        detail: what happened and what to do, in one sentence or two.
        errors: the offending fields, where there are any.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    type: ClassVar[str] = "internal"

    def __init__(self, detail: str, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)

    @property
    def retry_after(self) -> int | None:
        """Seconds after which trying again makes sense, or None where it does not."""
        return None

    def problem(self) -> Problem:
        """The error as the body of an ``application/problem+json`` answer."""
        return Problem(
            type=f"urn:elearn:problem:{self.type}",
            title=self.title,
            status=self.status,
            detail=self.detail,
            errors=self.errors,
            retry_after=self.retry_after,
        )


class Invalid(ElearnError):
    """The request is understood and refused; ``errors`` names the fields."""

    status = 422
    title = "Invalid request"
    type = "invalid"

    @classmethod
    def field(cls, field: str, message: str) -> "Invalid":
        """One offending field."""
        return cls(f"{field}: {message}", [FieldError(field=field, message=message)])

    @classmethod
    def of(cls, errors: Sequence[FieldError]) -> "Invalid":
        """Several offending fields; the detail is the first of them."""
        first = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return cls(f"{first.field}: {first.message}{more}", errors)


class Malformed(Invalid):
    """The body can't be read at all."""

    status = 400
    title = "Malformed request"
    type = "malformed"


class Unauthenticated(ElearnError):
    status = 401
    title = "Not authenticated"
    type = "unauthenticated"


class Forbidden(ElearnError):
    status = 403
    title = "Not allowed"
    type = "forbidden"


class NotFound(ElearnError):
    status = 404
    title = "Not found"
    type = "not-found"


class Conflict(ElearnError):
    status = 409
    title = "Conflict"
    type = "conflict"


class TooLarge(ElearnError):
    status = 413
    title = "Too large"
    type = "too-large"


class Unsupported(ElearnError):
    status = 501
    title = "Not supported here"
    type = "unsupported"


class Unavailable(ElearnError):
    """Something needed is away; the same request may succeed later.

    Args:
        retry: seconds until another try makes sense.
    """

    status = 503
    title = "Temporarily unavailable"
    type = "unavailable"

    def __init__(self, detail: str, errors: Sequence[FieldError] = (), *, retry: int = 2) -> None:
        super().__init__(detail, errors)
        self._retry = retry

    @property
    def retry_after(self) -> int | None:
        return self._retry


class StorageFull(ElearnError):
    status = 507
    title = "Storage full"
    type = "storage-full"


class Internal(ElearnError):
    pass


_BY_TYPE: dict[str, type[ElearnError]] = {
    kind.type: kind
    for kind in (
        Invalid,
        Malformed,
        Unauthenticated,
        Forbidden,
        NotFound,
        Conflict,
        TooLarge,
        Unsupported,
        StorageFull,
        Internal,
    )
}


def from_problem(problem: Problem) -> ElearnError:
    """The error that a problem describes: how a caller over the bus or HTTP raises it again."""
    kind = problem.type.rpartition(":")[2]
    if kind == Unavailable.type:
        return Unavailable(problem.detail, problem.errors, retry=problem.retry_after or 2)
    known = _BY_TYPE.get(kind)
    if known is None:
        known = next((each for each in _BY_TYPE.values() if each.status == problem.status), Internal)
    return known(problem.detail, problem.errors)
