"""Bytes to structs and back, with errors that name the field."""

import re
from collections.abc import Hashable
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec

from shared.contracts.problem import FieldError
from shared.errors import Invalid, Malformed

T = TypeVar("T")

_PLACE: Final = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_MISSING: Final = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_PATTERN: Final = re.compile(r"Expected `str` matching regex '(?P<pattern>.*)'")
_NAME_WORDS: Final = (
    "must be a name: lower-case letters, digits and dashes, at most 40, not beginning or ending with a dash"
)


@cache
def _decoder(kind: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cast(Any, kind))


def decode_json(kind: type[T], body: bytes | str) -> T:
    """Decode and check a JSON document.

    Raises:
        Malformed: it is not JSON.
        Invalid: it does not fit ``kind``; the error names the field.
    """
    try:
        decoded: T = _decoder(cast(Hashable, kind)).decode(body)
    except msgspec.ValidationError as error:
        raise invalid_from(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    return decoded


def convert(kind: type[T], value: object, *, strict: bool = True) -> T:
    """Check built-in types (a decoded YAML document, a form) against ``kind``.

    Raises:
        Invalid: it does not fit; the error names the field.
    """
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise invalid_from(error) from None


def encode_json(value: object) -> bytes:
    """The JSON of a struct."""
    return msgspec.json.encode(value)


def encode_document(value: object) -> str:
    """A struct as the text of a ``jsonb`` column."""
    return msgspec.json.encode(value).decode()


def decode_document(kind: type[T], text: str) -> T:
    """The struct in a ``jsonb`` column; a misfit is our own fault and raises msgspec's error."""
    decoded: T = _decoder(cast(Hashable, kind)).decode(text)
    return decoded


def invalid_from(error: msgspec.ValidationError) -> Invalid:
    """msgspec's error in words, with the offending field's dotted path."""
    match = _PLACE.match(str(error))
    what, path = (match["what"], match["path"] or "") if match else (str(error), "")
    prefix = _dotted(path)
    if unknown := _UNKNOWN.fullmatch(what):
        return _field(_join(prefix, unknown["field"]), "unknown field")
    if missing := _MISSING.fullmatch(what):
        return _field(_join(prefix, missing["field"]), "required, but missing")
    if pattern := _PATTERN.fullmatch(what):
        return _field(prefix or "body", _words_for(pattern["pattern"]))
    return _field(prefix or "body", what[:1].lower() + what[1:])


def _field(field: str, message: str) -> Invalid:
    return Invalid(f"{field}: {message}", [FieldError(field=field, message=message)])


def _dotted(path: str) -> str:
    path = path.removeprefix("key in ").removeprefix("$")
    return re.sub(r"\[(\d+|\.\.\.)\]", r".\1", path).strip(".").replace("....", ".*").replace("...", "*")


def _join(prefix: str, field: str) -> str:
    return f"{prefix}.{field}" if prefix else field


def _words_for(pattern: str) -> str:
    return _NAME_WORDS if "[-a-z0-9]{0,38}" in pattern else f"must match {pattern}"
