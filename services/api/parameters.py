"""What stands in a request's line: path parameters and the query. Pure."""

import re
from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from shared.codec import convert
from shared.contracts.common import NAME_PATTERN, Labels, label_errors
from shared.errors import Invalid, NotFound

Q = TypeVar("Q", bound=msgspec.Struct)

DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"


class PathParameter(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of path parameter.

    Attributes:
        route: the regular expression with which the router finds it.
        schema: its JSON schema.
        pattern: what it must match to name anything; None: anything goes.
        words: what it must be, for who got it wrong.
    """

    route: str
    schema: dict[str, object]
    words: str
    pattern: str | None = None


_NAME: Final = PathParameter(
    route="[^/:]+",
    schema={"type": "string", "pattern": NAME_PATTERN, "maxLength": 40},
    pattern=NAME_PATTERN,
    words="must be a name: lower-case letters, digits and dashes, at most 40",
)
_COUNT: Final = PathParameter(
    route="[^/:]+",
    schema={"type": "integer", "minimum": 1},
    pattern=r"^[1-9][0-9]{0,17}$",
    words="must be a number from 1 on",
)
PATH_PARAMETERS: Final[dict[str, PathParameter]] = {
    "project": _NAME,
    "name": _NAME,
    "alias": _NAME,
    "n": _COUNT,
    "sequence": _COUNT,
    "digest": PathParameter(
        route="[^/]+",
        schema={"type": "string", "pattern": DIGEST_PATTERN},
        pattern=DIGEST_PATTERN,
        words="must be sha256: and 64 hexadecimal digits",
    ),
    "path": PathParameter(route=".*", schema={"type": "string"}, words="is a path"),
}

_BRACES: Final = re.compile(r"\{(\w+)\}")


def names_in(path: str) -> tuple[str, ...]:
    """The parameters of a path template, in order."""
    return tuple(_BRACES.findall(path))


def router_path(path: str) -> str:
    """A path template as the router takes it."""
    return _BRACES.sub(lambda match: f"{{{match[1]}:{PATH_PARAMETERS[match[1]].route}}}", path)


def check_path(values: dict[str, str], new: frozenset[str], what: str) -> None:
    """Refuse path parameters that can't name anything.

    Args:
        new: parameters whose thing the request may make: there, the mistake is explained.
        what: the noun, for the answer.

    Raises:
        Invalid: one in ``new`` is not a legal name.
        NotFound: another one is not, so there is no such thing.
    """
    for key, value in values.items():
        parameter = PATH_PARAMETERS[key]
        if parameter.pattern is None or re.fullmatch(parameter.pattern, value):
            continue
        if key in new:
            raise Invalid.field(key, parameter.words)
        raise NotFound(f"there is no {what} {value[:60]!r}: {key} {parameter.words}")


def decode_query(kind: type[Q], pairs: Iterable[tuple[str, str]]) -> Q:
    """The query as a struct; a field that is a tuple may be given several times.

    Raises:
        Invalid: a parameter is not known, is given twice, or can't be read; it is named.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    values: dict[str, object] = {}
    for key, value in pairs:
        field = fields.get(key)
        if field is None:
            known = f"known here: {', '.join(fields)}" if fields else "none are known here"
            raise Invalid.field(key, f"unknown query parameter; {known}")
        if field.default == ():
            several = values.setdefault(key, [])
            if isinstance(several, list):
                several.append(value)
        elif key in values:
            raise Invalid.field(key, "is given twice")
        else:
            values[key] = value
    return convert(kind, values, strict=False)


def labels_of(pairs: Iterable[str]) -> Labels:
    """The labels of ``?label=team=search&label=kind=nightly``.

    Raises:
        Invalid: one is not ``key=value``, or not a legal label.
    """
    labels: Labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Invalid.field("label", f"{pair[:80]!r} is not key=value")
        labels[key] = value
    errors = label_errors("label", labels)
    if errors:
        raise Invalid.of(errors)
    return labels
