"""Cursors: where a list goes on. They are opaque to users and checked when they come back."""

import base64
import binascii
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from shared.errors import Invalid

T = TypeVar("T")

PAGE_BYTES: Final = 640 * 1024
"""The most bytes of a page: with room to spare in the smallest message limit that NATS is run with."""


def encode_cursor(*key: str | int) -> str:
    """A cursor for the sort key of the last item of a page."""
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def decode_cursor(cursor: str | None, *kinds: type) -> tuple[str | int, ...] | None:
    """The sort key in a cursor, or None for the first page.

    Raises:
        Invalid: the cursor is not one of ours.
    """
    if cursor is None:
        return None
    try:
        key = msgspec.json.decode(
            base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=tuple[str | int, ...]
        )
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise Invalid.field("cursor", "is not a cursor of this list") from None
    if len(key) != len(kinds) or not all(isinstance(part, kind) for part, kind in zip(key, kinds, strict=True)):
        raise Invalid.field("cursor", "is not a cursor of this list")
    return key


def fitting(items: Sequence[T], most: int = PAGE_BYTES) -> Sequence[T]:
    """The first of ``items`` that one message takes together; always at least one.

    A list answers these, with a cursor for the others.
    """
    size = 0
    for count, item in enumerate(items):
        size += len(msgspec.msgpack.encode(item))
        if count and size > most:
            return items[:count]
    return items
