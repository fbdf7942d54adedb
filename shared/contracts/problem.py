"""Problem details (RFC 9457): the one shape of every error that leaves a service."""

import msgspec


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One field that can't be accepted.

    Attributes:
        field: dotted path in the request body (``roles.worker.cpu``), or a query parameter's name.
        message: what is wrong with it and what would do, in words.
    """

    field: str
    message: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of an ``application/problem+json`` answer.

    Attributes:
        type: a URN that names the kind of problem, stable across releases.
        title: the kind in words.
        status: the HTTP status code.
        detail: this occurrence in one line: what happened and what to do.
        errors: the offending fields.
        retry_after: seconds after which another try makes sense.
    """

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldError, ...] = ()
    retry_after: int | None = None
