"""Which files of a folder do not belong to it: ``.elearnignore``, in the language of ``.gitignore``."""

import re
from collections.abc import Iterable
from typing import NamedTuple

FILE_NAME = ".elearnignore"

# Never part of anybody's code; a `!pattern` of the file takes one back in.
DEFAULTS = (
    ".git/",
    ".hg/",
    ".svn/",
    ".venv/",
    "__pycache__/",
    "*.pyc",
    ".mypy_cache/",
    ".pytest_cache/",
    ".ruff_cache/",
    ".ipynb_checkpoints/",
    "node_modules/",
    ".DS_Store",
)


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    ignores: bool
    directories_only: bool


class Ignore:
    """Rules in order; the last one that matches decides.

    As in ``.gitignore``: ``#`` comments; ``!`` takes back; a trailing ``/`` means directories only; a ``/``
    elsewhere anchors at the top; ``*``, ``?``, ``[…]`` do not cross a ``/``, ``**`` does. Nothing below an
    ignored directory is looked at.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._rules = [rule for line in (*DEFAULTS, *lines) if (rule := _parse(line)) is not None]

    def ignores(self, path: str, *, is_directory: bool) -> bool:
        """Whether the file or directory at this path, relative to the top and with ``/``, is left out."""
        answer = False
        for rule in self._rules:
            if (is_directory or not rule.directories_only) and rule.pattern.fullmatch(path):
                answer = rule.ignores
        return answer


def _parse(line: str) -> _Rule | None:
    text = line.rstrip("\r\n")
    text = re.sub(r"(?<!\\) +$", "", text)
    if not text or text.startswith("#"):
        return None
    ignores = not text.startswith("!")
    text = text.removeprefix("!").removeprefix("\\")
    directories_only = text.endswith("/")
    text = text.rstrip("/")
    if not text:
        return None
    anchored = "/" in text
    body = _translate(text.removeprefix("/"))
    return _Rule(re.compile(body if anchored else f"(?:.*/)?{body}", re.DOTALL), ignores, directories_only)


def _translate(glob: str) -> str:
    out, at = [], 0
    while at < len(glob):
        if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
            out.append("(?:.*/)?")
            at += 3
        elif glob.startswith("**", at):
            out.append(".*")
            at += 2
        elif glob[at] == "*":
            out.append("[^/]*")
            at += 1
        elif glob[at] == "?":
            out.append("[^/]")
            at += 1
        elif glob[at] == "[" and (end := glob.find("]", at + 2)) > 0:
            inside = glob[at + 1 : end].replace("\\", r"\\")
            negated = inside[0] in "!^"
            members = re.sub(r"([\[&~|])", r"\\\1", inside[1:] if negated else inside)
            out.append(f"(?!/)[{'^' if negated else ''}{members}]")
            at = end + 1
        elif glob[at] == "\\" and at + 1 < len(glob):
            out.append(re.escape(glob[at + 1]))
            at += 2
        else:
            out.append(re.escape(glob[at]))
            at += 1
    return "".join(out)
