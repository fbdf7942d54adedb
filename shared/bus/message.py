"""A lifecycle event as a consumer meets it."""

from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from shared.codec import decode_json
from shared.context import CAUSATION_HEADER, TRACE_HEADER, Cause

T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery of an event.

    Attributes:
        id: the event's id, the same for every delivery and for a publication after a lost stream.
        noun, event, project, name: the parts of the subject.
        deliveries: how often it has been delivered to this consumer, this time included.
        sequence: its place in the stream.
    """

    id: str
    subject: str
    noun: str
    event: str
    project: str
    name: str
    time: datetime
    body: bytes
    sequence: int
    deliveries: int
    headers: Mapping[str, str]

    def data(self, kind: type[T]) -> T:
        """The body.

        Raises:
            Invalid: it does not fit ``kind``.
        """
        return decode_json(kind, self.body)

    def cause(self, actor: str) -> Cause:
        """The cause of work done because of this message."""
        return Cause(
            actor=actor,
            traceparent=Cause.from_headers(self.headers).traceparent,
            causation=self.id,
        )


def message_from(
    subject: str, headers: Mapping[str, str], body: bytes, *, sequence: int, deliveries: int, time: datetime
) -> Message:
    """Read a delivery; a pipeline's plain message gets the id that its place in the stream gives."""
    parts = (subject.split(".") + [""] * 6)[:6]
    return Message(
        id=headers.get("ce-id") or headers.get("Nats-Msg-Id") or f"{subject}@{sequence}@{time.isoformat()}",
        subject=subject,
        noun=parts[2],
        event=parts[3],
        project=parts[4],
        name=parts[5],
        time=_time(headers.get("ce-time"), time),
        body=body,
        sequence=sequence,
        deliveries=deliveries,
        headers=headers,
    )


def _time(text: str | None, otherwise: datetime) -> datetime:
    if text:
        try:
            return msgspec.convert(text, datetime)
        except msgspec.ValidationError:
            return otherwise
    return otherwise


__all__ = ["CAUSATION_HEADER", "TRACE_HEADER", "Message", "message_from"]
