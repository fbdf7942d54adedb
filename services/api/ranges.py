"""Ranges and validators of HTTP (RFC 9110): which bytes of a file to send. Pure."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec

_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes to send.

    Attributes:
        start, length: of the part; the whole where ``partial`` is False.
    """

    start: int
    length: int
    partial: bool


class Outside(Exception):
    """The range begins after the end."""


def span_of(header: str | None, size: int) -> Span:
    """The part that a ``Range`` header asks for.

    A header that is not one range of bytes is passed over, as RFC 9110 says.

    Raises:
        Outside: nothing of the range is there.
    """
    whole = Span(start=0, length=size, partial=False)
    match = _RANGE.fullmatch(header.replace(" ", "")) if header else None
    if match is None or (match[1] == "" and match[2] == ""):
        return whole
    if match[1] == "":
        length = min(int(match[2]), size)
        if length == 0:
            raise Outside
        return Span(start=size - length, length=length, partial=True)
    start = int(match[1])
    end = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < start:
        return whole
    if start >= size:
        raise Outside
    return Span(start=start, length=end - start + 1, partial=True)


def requested_span(headers: Mapping[str, str], etag: str, size: int) -> Span:
    """The part that a request asks for, given that the thing is now what ``etag`` names.

    Raises:
        Outside: nothing of the range is there.
    """
    condition = headers.get("If-Range")
    if condition is not None and (condition != etag or condition.startswith("W/")):
        return Span(start=0, length=size, partial=False)
    return span_of(headers.get("Range"), size)


def is_known(headers: Mapping[str, str], etag: str) -> bool:
    """Whether ``If-None-Match`` names what is there now, so that 304 is the answer."""
    header = headers.get("If-None-Match")
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return etag.removeprefix("W/") in (each.strip().removeprefix("W/") for each in header.split(","))
