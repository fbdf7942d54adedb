"""Write docs/settings.md from the structs that services read:  python deploy/settings.py  (`make contracts` does)."""

import importlib
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_origin

import msgspec

from shared.settings import ServiceSettings

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "settings.md"
SERVICES = ("api", "scheduler", "datastore", "registry", "serving")

_HEAD = """# Settings

Made by `deploy/settings.py` from the structs that services read; `make contracts` writes it anew.

A service reads each from the environment variable of the name shown, at start. An empty variable counts as not set.
What can't be read ends the service with one line that names the variable. Lists are joined by commas, lists of paths by
colons; switches are `true` or `false`. Beside them, on the local cloud, scheduler and serving read `ELEARN_CPUS` (such
as `8`), `ELEARN_MEMORY` (`16Gi`) and `ELEARN_FAKE_GPUS` (`4` or `4:A100`) instead of what the machine has.

The command line and the client read `ELEARN_HOME`, `ELEARN_URL`, `ELEARN_TOKEN`, `ELEARN_PROJECT` and, for a traceback
with an error, `ELEARN_DEBUG`.
"""


def document() -> str:
    """The whole page."""
    common = {field.name for field in msgspec.structs.fields(ServiceSettings)}
    parts = [_HEAD, _section("Every service", [ServiceSettings], frozenset())]
    for service in SERVICES:
        kind = importlib.import_module(f"services.{service}.settings").Settings
        parts.append(_section(f"`services.{service}`", [kind], frozenset(common)))
    parts.append(_section("Kubernetes: every room with a driver", _structs("shared.kube.settings"), frozenset()))
    for path in sorted((ROOT / "services").glob("*/cloud/kubernetes/options.py")):
        room = path.parts[-4]
        kinds = _structs(f"services.{room}.cloud.kubernetes.options")
        parts.append(_section(f"Kubernetes: `services.{room}`", kinds, frozenset()))
    return "\n".join(parts)


def _structs(module: str) -> list[type[msgspec.Struct]]:
    """The structs of a module that are read from the environment, as their docstrings say or their names."""
    members = vars(importlib.import_module(module)).values()
    structs = [each for each in members if inspect.isclass(each) and issubclass(each, msgspec.Struct)]
    return [
        each
        for each in structs
        if each.__module__ == module and ("ELEARN_<" in (each.__doc__ or "") or each.__name__.endswith("Settings"))
    ]


def _section(title: str, kinds: Sequence[type[msgspec.Struct]], without: frozenset[str]) -> str:
    rows = [
        f"| `ELEARN_{field.name.upper()}` | {_type(field.type)} | {_default(field)} | {told[field.name]} |"
        for kind in kinds
        for told in (_attributes(inspect.getdoc(kind) or ""),)
        for field in msgspec.structs.fields(kind)
        if field.name not in without
    ]
    return "\n".join((f"## {title}", "", "| variable | type | default | meaning |", "|---|---|---|---|", *rows, ""))


def _attributes(text: str) -> dict[str, str]:
    """Meaning by field, of a docstring's ``Attributes:``."""
    _, _, section = text.partition("Attributes:\n")
    told: dict[str, str] = {}
    for names, meaning in re.findall(r"^    (\w[\w, ]*): (.*(?:\n        .*)*)", section, re.MULTILINE):
        for name in names.split(","):
            told[name.strip()] = " ".join(meaning.split()).replace("``", "`").replace("|", "\\|")
    return told


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "(must be set)"
    value = field.default if field.default is not msgspec.NODEFAULT else ()
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`" if value else "none"
    return f"`{value}`" if str(value) else "none"


def _type(kind: object) -> str:
    if get_origin(kind) is tuple:
        return f"list of {_type(get_args(kind)[0])}s"
    if get_args(kind):
        return " or ".join(f"`{each}`" for each in get_args(kind))
    names = {str: "text", int: "whole number", float: "number", bool: "switch", Path: "path"}
    return names[kind] if isinstance(kind, type) else str(kind)


if __name__ == "__main__":
    TARGET.write_text(document())
