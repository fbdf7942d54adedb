"""Which lifecycle events a stream carries: one project's, narrowed by a subject, from some point on. Pure."""

import re
from datetime import datetime, timedelta
from typing import Final

from shared.contracts.common import parse_duration
from shared.contracts.event import PREFIX, subject_filter_problem
from shared.errors import Invalid

_WORDS: Final = 6
_PROJECT: Final = 4
"""Events are ``elearn.v1.<noun>.<event>.<project>.<name>``: six words, the project's is the fifth."""


def narrowed(subject: str | None, project: str) -> str:
    """The subject that matches what ``subject`` does, within one project.

    Raises:
        Invalid: it is not a subject, or nothing of the project can match it.
    """
    if subject is None:
        return f"{PREFIX}.*.*.{project}.*"
    problem = subject_filter_problem(subject)
    if problem is not None:
        raise Invalid.field("subject", problem)
    words = subject.split(".")
    if words[-1] == ">" and len(words) <= _WORDS:
        words = [*words[:-1], *["*"] * (_WORDS + 1 - len(words))]
    if len(words) != _WORDS:
        raise Invalid.field("subject", f"{subject!r} matches nothing: events have six words; end it in '>'")
    if words[_PROJECT] not in ("*", project):
        raise Invalid.field("subject", f"{subject!r} is of project {words[_PROJECT]!r}; this stream is of {project!r}")
    return ".".join([PREFIX, *words[2:_PROJECT], project, *words[_PROJECT + 1 :]])


def parse_since(text: str, now: datetime, field: str = "since") -> int | datetime:
    """A sequence, an instant, or how long ago (``10m``).

    Raises:
        Invalid: it is none of these.
    """
    if re.fullmatch(r"\d{1,18}", text):
        return int(text)
    try:
        # A "+" of an offset that was not escaped arrives as a space.
        instant = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        instant = None
    if instant is not None:
        if instant.tzinfo is None:
            raise Invalid.field(field, f"{text!r} has no offset; write it like 2026-01-31T12:00:00Z")
        return instant
    try:
        return now - timedelta(seconds=parse_duration(text))
    except ValueError:
        raise Invalid.field(
            field, f"{text[:60]!r} is neither a sequence, nor a time like 2026-01-31T12:00:00Z, nor a span like 10m"
        ) from None
