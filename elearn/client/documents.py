"""Spec files: YAML as version 1.2 reads it, several documents in one file, and where each field stands."""

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from shared.codec import convert
from shared.contracts.problem import FieldError
from shared.errors import Invalid, Malformed

T = TypeVar("T", bound=msgspec.Struct)

_BIGGEST_FILE: Final = 4 << 20
_LONGEST_NUMBER: Final = 100


class Document:
    """One document of a spec file.

    Args:
        data: its fields.
        lines: the line, from 1, of each field by its dotted path.
        source: the file's name, for messages.
        folder: what relative paths in it are relative to.
    """

    def __init__(self, data: dict[str, object], lines: Mapping[str, int], source: str, folder: Path) -> None:
        self.data = data
        self.lines = lines
        self.source = source
        self.folder = folder

    @property
    def kind(self) -> str | None:
        """``kind`` of the document, where it says one."""
        kind = self.data.get("kind")
        return kind if isinstance(kind, str) else None

    def place(self, field: str = "") -> str:
        """Where a field stands (``digits.yaml:12``): the nearest one around it that the file has."""
        parts = field.split(".") if field else []
        while parts:
            line = self.lines.get(".".join(parts))
            if line is not None:
                return f"{self.source}:{line}"
            parts.pop()
        return f"{self.source}:{self.lines.get('', 1)}"

    def explain(self, error: Invalid) -> Invalid:
        """The same error, with the lines of this file in front of its fields."""
        if not error.errors:
            return error
        told = "; ".join(f"{self.place(each.field)}: {each.field}: {each.message}" for each in error.errors)
        return type(error)(told, error.errors)

    def spec(self, kind: str, struct: type[T]) -> T:
        """The document as a spec.

        Raises:
            Invalid: it is of another kind, or does not fit; each field with its line.
        """
        told = self.data.get("kind")
        if told is not None and told != kind:
            field = FieldError(field="kind", message=f"expected a {kind}, got {told!r}")
            raise self.explain(Invalid.of([field]))
        try:
            return convert(struct, self.data)
        except Invalid as error:
            raise self.explain(_narrowed(error, self.data)) from None

    def set(self, assignment: str) -> None:
        """Change one field by ``roles.worker.replicas=3``; the value is read as YAML.

        Raises:
            Invalid: the assignment can't be read, or leads through something that has no fields.
        """
        path, sign, text = assignment.partition("=")
        parts = [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", path.strip())]
        if not sign or not all(parts):
            raise Invalid(f"--set {assignment!r}: write it like roles.worker.replicas=3")
        try:
            node = _compose_one(text)
        except yaml.YAMLError as error:
            raise Invalid(f"--set {path}: {_words(error)}") from None
        value = None if node is None else _Reader().read(node, "")
        at: object = self.data
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            if isinstance(at, dict):
                if last:
                    at[part] = value
                elif at.get(part) is None:
                    at[part] = {}
                at = at[part]
            elif isinstance(at, list) and part.isdecimal() and int(part) < len(at):
                if last:
                    at[int(part)] = value
                at = at[int(part)]
            else:
                raise Invalid(f"--set {path}: {'.'.join(parts[:index]) or 'the spec'} has no {part!r}")


def _narrowed(error: Invalid, data: Mapping[str, object]) -> Invalid:
    """The error of a table of words (``env``, ``labels``), with the entries that are none."""
    if len(error.errors) != 1 or "expected `str`" not in error.errors[0].message:
        return error
    field = error.errors[0].field
    table: object = data
    for part in field.split("."):
        table = table.get(part) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return error
    return Invalid.of(
        [
            FieldError(field=f"{field}.{key}", message="must be text: put it in quotes")
            for key, value in table.items()
            if not isinstance(value, str)
        ]
    )


def read_documents(path: str | Path) -> list[Document]:
    """Every document of a spec file; ``-`` is standard input.

    Raises:
        Malformed: it can't be read, or is not YAML; with the line.
        Invalid: a document is not a mapping of fields.
    """
    if str(path) == "-":
        return parse_documents(sys.stdin.read(_BIGGEST_FILE + 1), "<stdin>", Path.cwd())
    path = Path(path)
    try:
        if path.is_dir():
            raise Malformed(f"{path} is a folder: name the spec file in it")
        with path.open(encoding="utf-8") as file:
            text = file.read(_BIGGEST_FILE + 1)
    except FileNotFoundError:
        raise Malformed(f"{path} does not exist") from None
    except OSError as error:
        raise Malformed(f"can't read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise Malformed(f"{path} is not text: {error}") from None
    return parse_documents(text, str(path), path.absolute().parent)


def parse_documents(text: str, source: str, folder: Path) -> list[Document]:
    """Every document of a text; see :func:`read_documents`."""
    if len(text) > _BIGGEST_FILE:
        raise Malformed(f"{source} is larger than {_BIGGEST_FILE >> 20} MiB: that is no spec file")
    found = []
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            reader = _Reader()
            data = reader.read(node, "")
            if data is None:  # an empty document, as after a last `---`
                continue
            line = node.start_mark.line + 1
            if not isinstance(data, dict):
                raise Invalid(f"{source}:{line}: a spec is a mapping of fields, like `name: digits`")
            found.append(Document(data, reader.lines, source, folder))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise Malformed(f"{source}{line}: {_words(error)}") from None
    except RecursionError:
        raise Malformed(f"{source}: nested too deeply") from None
    if not found:
        raise Malformed(f"{source}: there is no document in it")
    return found


def _words(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return ", ".join(part for part in (error.context, error.problem) if part)
    return " ".join(str(error).split())


def _compose_one(text: str) -> yaml.Node | None:
    return yaml.compose(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `on`, `no` and `12:30` are words, a date is a word."""

    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


class _Reader:
    """Turns nodes into built-in types, and remembers where each field stood."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: str) -> object:
        self.lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if id(node) in self._open:
            raise yaml.constructor.ConstructorError(None, None, "an alias holds itself", node.start_mark)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.read(each, _below(path, str(at))) for at, each in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node, path: str) -> dict[str, object]:
        result: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key, value in self._pairs(node):
            if key.tag == "tag:yaml.org,2002:merge":
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in parts:
                    more = self.read(part, path)
                    if not isinstance(more, dict):
                        raise yaml.constructor.ConstructorError(None, None, "`<<` takes a mapping", value.start_mark)
                    merged = {**more, **merged}
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a field's name must be a word", key.start_mark)
            name = str(key.value)
            if name in result:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the field {name!r} is there twice", key.start_mark
                )
            result[name] = self.read(value, _below(path, name))
            self.lines[_below(path, name)] = key.start_mark.line + 1
        return {**merged, **result}

    def _pairs(self, node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        yield from pairs


def _below(path: str, part: str) -> str:
    return f"{path}.{part}" if path else part


def _scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    match node.tag.removeprefix("tag:yaml.org,2002:"):
        case "str" | "merge":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            if len(text) > _LONGEST_NUMBER:
                raise yaml.constructor.ConstructorError(None, None, "a number this long", node.start_mark)
            return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case tag:
            raise yaml.constructor.ConstructorError(None, None, f"the tag {tag!r} is not known here", node.start_mark)
