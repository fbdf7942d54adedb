"""JSON schemas of structs, with their docstrings told as descriptions. Pure."""

import inspect
import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

Schema = dict[str, Any]

_ENTRY: Final = re.compile(r"^(\w+(?:, \w+)*): (.*)$")


def schemas_of(types: Iterable[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """The schema of each type, and the components that they refer to, by name."""
    listed = list(types)
    references, components = msgspec.json.schema_components(listed, ref_template="#/components/schemas/{name}")
    told = {_legal(name): _told(schema) for name, schema in components.items()}
    return [_renamed(reference) for reference in references], {name: _renamed(told[name]) for name in sorted(told)}


def told_of(kind: type[msgspec.Struct]) -> tuple[str, dict[str, str]]:
    """What a struct's docstring says of it, and of each of its fields."""
    return _split(inspect.getdoc(kind) or "")


def _told(schema: Schema) -> Schema:
    summary, fields = _split(inspect.cleandoc(str(schema.get("description", ""))))
    result = {key: value for key, value in schema.items() if key != "description"}
    if summary:
        result["description"] = summary
    if "properties" in result:
        result["properties"] = {
            name: {**_dated(name, each), **({"description": fields[name]} if name in fields else {})}
            for name, each in result["properties"].items()
        }
    return result


def _dated(name: str, schema: Schema) -> Schema:
    """Instants are strings of one form; msgspec does not say so, our names do."""
    if name not in ("at", "time") and not name.endswith("_at"):
        return schema
    if "anyOf" in schema:
        return {**schema, "anyOf": [_dated(name, each) for each in schema["anyOf"]]}
    return {**schema, "format": "date-time"} if schema.get("type") == "string" else schema


def _split(text: str) -> tuple[str, dict[str, str]]:
    """The words before ``Attributes:``, and those of each attribute."""
    summary, _, attributes = text.partition("Attributes:")
    fields: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(attributes).splitlines():
        entry = _ENTRY.match(line)
        if entry is not None:
            names = entry[1].split(", ")
            words = entry[2]
        else:
            words = line.strip()
        for name in names:
            fields[name] = f"{fields[name]} {words}".strip() if entry is None else words
    return _plain(summary), {name: _plain(words) for name, words in fields.items()}


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`"))).strip()


def _legal(name: str) -> str:
    """A component's name as the specification allows it; generics lose their brackets."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).strip("_")


def _renamed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: f"#/components/schemas/{_legal(each.rpartition('/')[2])}"
            if key == "$ref" and isinstance(each, str)
            else _renamed(each)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_renamed(each) for each in value]
    return value
