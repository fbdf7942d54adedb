"""What every noun shares: names, quantities, pages, and the readings of `2Gi` and `1h30m`."""

import re
from datetime import datetime
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from shared.contracts.problem import FieldError

# The look-ahead: Python's "$" would let a line end through at the very end.
NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$(?!\n)"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=40)]
"""A name chosen by a user: lower-case letters, digits and dashes, at most 40 of them."""

Labels = dict[str, str]
"""Labels of a resource; keys and values are those that Kubernetes takes."""

Instant = datetime
"""A moment, always with its offset, always written in UTC."""

DEFAULT_PROJECT: Final = "default"

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A part of a list.

    Attributes:
        items: at most as many as were asked for.
        next: hand it back as ``cursor`` for the items that follow; None at the end.
    """

    items: tuple[T, ...]
    next: str | None = None


class Named(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names one thing of a project."""

    project: Name
    name: Name


class ListRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for a page.

    Attributes:
        limit: how many items at the most.
        cursor: where to go on, from the page before.
        state: only items in this state.
        labels: only items that carry all of these labels.
    """

    project: Name
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    cursor: str | None = None
    state: str | None = None
    labels: Labels = {}


class Done(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answer of a verb that has nothing to say but that it is done."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a file, as it travels over the bus.

    Attributes:
        data: the bytes, at most :data:`CHUNK_BYTES`.
        offset: where in the file they begin.
        total: the file's size in bytes, where it is known.
        end: no bytes follow these.
    """

    data: bytes
    offset: int
    total: int | None = None
    end: bool = False


CHUNK_BYTES: Final = 512 * 1024
"""The most bytes of a file that one message carries: half of what the bus takes in one message."""


# -- quantities -----------------------------------------------------------------------------------

_MEMORY_UNITS: Final = {
    "": 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")

Quantity = int | float | str


def parse_memory(value: Quantity) -> int:
    """Bytes of ``2Gi``, ``512M`` or a bare number.

    Raises:
        ValueError: with the sentence to show.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|M|G|T|Ki|Mi|Gi|Ti)?", value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not an amount of memory; write it like 512Mi or 2Gi")
        number = float(match[1]) * _MEMORY_UNITS[match[2] or ""]
    else:
        number = float(value)
    if number < 0 or number > 2**60:
        raise ValueError(f"{value!r} is out of range for memory")
    return int(number)


def parse_cpu(value: Quantity) -> float:
    """Cores of ``1``, ``0.5`` or ``500m``.

    Raises:
        ValueError: with the sentence to show.
    """
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(m)?", value.strip())
        if match is None:
            raise ValueError(f"{value!r} is not a number of CPUs; write it like 2, 0.5 or 500m")
        number = float(match[1]) / (1000 if match[2] else 1)
    else:
        number = float(value)
    if not 0 <= number <= 100_000:
        raise ValueError(f"{value!r} is out of range for CPUs")
    return number


def parse_duration(value: Quantity) -> float:
    """Seconds of ``90s``, ``1h30m``, ``2d`` or a bare number of seconds.

    Raises:
        ValueError: with the sentence to show.
    """
    if isinstance(value, str):
        text = value.strip()
        parts = _DURATION_PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(f"{value!r} is not a duration; write it like 90s, 30m, 2h or 1h30m")
        seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    else:
        seconds = float(value)
    if not 0 < seconds <= 10 * 365 * 86400:
        raise ValueError(f"{value!r} is out of range for a duration: more than nothing, at most ten years")
    return seconds


def format_memory(size: int) -> str:
    """Bytes in words: ``2Gi``, ``1.5Gi``, ``300Mi``."""
    for unit in ("Ti", "Gi", "Mi", "Ki"):
        if size >= _MEMORY_UNITS[unit]:
            return f"{size / _MEMORY_UNITS[unit]:.4g}{unit}"
    return str(size)


# -- rules that more than one noun needs ------------------------------------------------------------

_LABEL_KEY: Final = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def label_errors(field: str, labels: Labels) -> list[FieldError]:
    """What keeps labels from being legal in every cloud."""
    errors = []
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            errors.append(FieldError(field=f"{field}.{key}", message="is not a legal label key"))
        if not _LABEL_VALUE.fullmatch(value):
            errors.append(
                FieldError(
                    field=f"{field}.{key}",
                    message=f"{value!r} is not a legal label value: at most 63 of A-Z a-z 0-9 - _ .",
                )
            )
    return errors


def relative_path_problem(path: str) -> str | None:
    """Why a path can't be one below a directory, or None: absolute, empty, or climbing out by ``..``."""
    if not path or path.startswith("/"):
        return f"{path!r} must be a relative path"
    if "\0" in path:
        return "must not contain a NUL"
    depth = 0
    for part in path.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            return f"{path!r} leaves its directory by '..'"
    return None
