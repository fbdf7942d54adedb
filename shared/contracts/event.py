"""Lifecycle events: their subjects, and the form in which they leave the gateway (CloudEvents 1.0)."""

import re
from typing import Final

import msgspec

from shared.contracts.common import Instant

STREAM: Final = "ELEARN"
DEAD_STREAM: Final = "ELEARN_DEAD"
PREFIX: Final = "elearn.v1"

NOUNS: Final[dict[str, tuple[str, ...]]] = {
    "training": (
        "queued",
        "starting",
        "running",
        "succeeded",
        "failed",
        "stopped",
        "freed",
        "retrying",
        "deleted",
    ),
    "task": ("running", "restarted", "succeeded", "failed"),
    "datastore": ("provisioning", "ready", "failed", "deleting", "deleted"),
    "data": ("arrived",),
    "version": ("saving", "ready", "failed", "deleted"),
    "alias": ("moved", "deleted"),
    "model": ("deleted",),
    "serving": ("deploying", "ready", "degraded", "failed", "deleted"),
    "project": ("created", "deleted"),
}
"""Every noun and what can happen to it."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lifecycle event in CloudEvents' structured JSON form.

    Attributes:
        type: ``elearn.v1.<noun>.<event>``.
        subject: the whole NATS subject.
        sequence: place in the stream: hand it to ``?since=`` to go on after it.
        causation: the id of the event or request that started this.
        data: the body; its schema is the noun's event struct.
    """

    id: str
    source: str
    type: str
    subject: str
    time: Instant
    data: msgspec.Raw
    specversion: str = "1.0"
    datacontenttype: str = "application/json"
    sequence: int | None = None
    traceparent: str | None = None
    causation: str | None = None


def subject_of(noun: str, event: str, project: str, name: str) -> str:
    """The subject of an event.

    Raises:
        ValueError: the noun has no such event: a mistake in our own code.
    """
    if event not in NOUNS.get(noun, ()):
        raise ValueError(f"no such lifecycle event: {noun}.{event}")
    return f"{PREFIX}.{noun}.{event}.{project}.{name}"


_SUBJECT_FILTER: Final = re.compile(r"[-A-Za-z0-9_]+|\*")


def subject_filter_problem(subject: str) -> str | None:
    """Why a subject can't filter lifecycle events, or None."""
    words = subject.split(".")
    for position, word in enumerate(words):
        if word == ">" and position == len(words) - 1:
            continue
        if not _SUBJECT_FILTER.fullmatch(word):
            return f"{subject!r} is not a subject: words joined by dots, * for any one, > for all that follow"
    if words[0] not in ("elearn", "*", ">") or (len(words) > 1 and words[1] not in ("v1", "*", ">")):
        return f"{subject!r} matches nothing: lifecycle events are below {PREFIX}.>"
    return None
