"""Who and what caused the work at hand: carried by every message, row and log line."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Final

import msgspec

ACTOR_HEADER: Final = "elearn-actor"
CAUSATION_HEADER: Final = "elearn-causation"
IDEMPOTENCY_HEADER: Final = "elearn-idempotency-key"
TRACE_HEADER: Final = "traceparent"

_TRACEPARENT: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """What the current work goes back to.

    Attributes:
        actor: the name of the token that asked, or of the service that reacts.
        traceparent: W3C trace context.
        causation: id of the event or request that started this.
        idempotency_key: the key under which the caller may send the same request again.
    """

    actor: str = ""
    traceparent: str = ""
    causation: str = ""
    idempotency_key: str | None = None

    def headers(self) -> dict[str, str]:
        """The cause as message headers."""
        pairs = {
            ACTOR_HEADER: self.actor,
            TRACE_HEADER: self.traceparent,
            CAUSATION_HEADER: self.causation,
            IDEMPOTENCY_HEADER: self.idempotency_key or "",
        }
        return {key: value for key, value in pairs.items() if value}

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> "Cause":
        """The cause that a message carries; a trace of its own where it has none."""
        return cls(
            actor=headers.get(ACTOR_HEADER, ""),
            traceparent=continued_trace(headers.get(TRACE_HEADER)),
            causation=headers.get(CAUSATION_HEADER, ""),
            idempotency_key=headers.get(IDEMPOTENCY_HEADER) or None,
        )


def continued_trace(traceparent: str | None) -> str:
    """``traceparent`` if it is well formed, else a new one."""
    if traceparent and _TRACEPARENT.fullmatch(traceparent):
        return traceparent
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"


_NOTHING: Final = Cause()
_current: ContextVar[Cause | None] = ContextVar("elearn_cause", default=None)


def current() -> Cause:
    """The cause of the work at hand."""
    return _current.get() or _NOTHING


@contextlib.contextmanager
def caused_by(cause: Cause) -> Iterator[None]:
    """Everything inside goes back to ``cause``."""
    token = _current.set(cause)
    try:
        yield
    finally:
        _current.reset(token)
