"""Legal names, labels and selectors, and how two installations in one cluster are told apart. Pure."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

INSTALLATION: Final = "elearn.dev/installation"
ROOM: Final = "elearn.dev/room"
PROJECT: Final = "elearn.dev/project"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"

DEFAULT_INSTALLATION: Final = "elearn"
PROJECT_NAMESPACE: Final = "elearn-{project}"
LONGEST_NAME: Final = 63
LONGEST_LABEL: Final = 63
LONGEST_PROJECT: Final = 40
"""Characters of a project's name, as :data:`shared.contracts.common.Name` lets it have them."""

_ALPHABET: Final = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, so that no words come out
_HASH: Final = 8  # characters: a collision within a million names is one in half a million
_LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

Selector = Mapping[str, str | Sequence[str] | None]
"""Wanted labels: a value, any of several values, or None for any value at all."""


def field_manager(installation: str) -> str:
    """Under which name an installation owns the fields that it applies."""
    return DEFAULT_INSTALLATION if installation == DEFAULT_INSTALLATION else f"elearn:{installation}"


def digest(*parts: str) -> str:
    """Eight characters that stand for the parts, the same in every process and release."""
    number = int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8])
    letters = []
    for _ in range(_HASH):
        number, rest = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[rest])
    return "".join(letters)


def object_name(installation: str, *parts: str, room: int = 0) -> str:
    """A DNS label that is legal for every kind, a Service's included, and belongs to these parts alone.

    The parts stay readable as far as they fit; a digest of installation and parts makes it unique, so that
    ``("a", "b-c")`` and ``("a-b", "c")``, or two installations in one namespace, never meet.

    Args:
        room: characters that something else will append (``-17`` to an Indexed Job's pods), left free.

    Raises:
        ValueError: no part, or no room for a name.
    """
    longest = LONGEST_NAME - room - _HASH - 1
    if not parts or longest < 1:
        raise ValueError(f"no name of {LONGEST_NAME - room} characters can be made of {parts!r}")
    readable = re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
    if not readable[:1].isalpha():
        readable = f"e{readable}" if readable else "e"
    return f"{readable[:longest].rstrip('-')}-{digest(installation, *parts)}"


def project_namespace(project: str, pattern: str = PROJECT_NAMESPACE) -> str:
    """The namespace in which everything of a project lies, the same for every room.

    Args:
        pattern: ``{project}`` stands for the project's name; without it all projects share one namespace.

    Raises:
        ValueError: what comes out is no name of a namespace.
    """
    name = pattern.replace("{project}", project)
    if len(name) > LONGEST_NAME or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name):
        raise ValueError(f"{name!r}, made of {pattern!r}, can't be the name of a namespace")
    return name


def pattern_problem(pattern: str) -> str:
    """Why not every project gets a namespace by a pattern; "": each does."""
    longest = pattern.replace("{project}", "p" * LONGEST_PROJECT)
    if len(longest) > LONGEST_NAME:
        return (
            f"{pattern!r} makes names of up to {len(longest)} characters, as a project's own has up to"
            f" {LONGEST_PROJECT}, and a namespace's has {LONGEST_NAME} at the most: shorten it"
        )
    try:
        project_namespace("p" * LONGEST_PROJECT, pattern)
    except ValueError:
        return f"{pattern!r} makes no legal name of a namespace: lower-case letters, digits, dashes, and {{project}}"
    return ""


def label_value(text: str) -> str:
    """The text where it is a legal label value, else as much of it as is, with a digest of the whole."""
    if _LABEL.fullmatch(text):
        return text
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[: LONGEST_LABEL - _HASH - 1].strip("-_.")
    return f"{readable}-{digest(text)}" if readable else digest(text)


def labels_of(installation: str, labels: Mapping[str, str] | None = None) -> dict[str, str]:
    """Labels for an object of ours; values are made legal."""
    legal = {key: label_value(value) for key, value in (labels or {}).items()}
    return {**legal, MANAGED_BY: "elearn", INSTALLATION: label_value(installation)}


def selector_text(selector: Selector) -> str:
    """A selector as the API's ``labelSelector`` and ``fieldSelector`` take it."""
    terms = []
    for key, wanted in sorted(selector.items()):
        if wanted is None:
            terms.append(key)
        elif isinstance(wanted, str):
            terms.append(f"{key}={wanted}")
        else:
            terms.append(f"{key} in ({','.join(wanted)})")
    return ",".join(terms)
