"""Secrets of one machine: files ``$ELEARN_HOME/secrets/<project>/<name>/<key>``, put there by whoever runs elearn.

A value goes from its file into the environment of the tasks that refer to it, and nowhere else. All of it blocks.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from shared.beneath import NotAFileError, OutsideError, Tree
from shared.contracts.training import SecretKey

_LARGEST: Final = 1024 * 1024


class NoSecret(Exception):
    """There is no such value; the text says where to put it."""


class SecretFiles:
    """Reads them.

    Args:
        home: ``ELEARN_HOME``.
    """

    def __init__(self, home: Path) -> None:
        self._root = home / "secrets"

    def values(self, project: str, secrets: Mapping[str, SecretKey]) -> dict[str, str]:
        """The values, by variable.

        Raises:
            NoSecret: one is not there, or can't be used.
        """
        return {variable: self.value(project, secret) for variable, secret in secrets.items()}

    def value(self, project: str, secret: SecretKey) -> str:
        """A value: a file's text, without the line's end that most editors leave.

        Raises:
            NoSecret: see above.
        """
        path = self._root / project / secret.name / secret.key
        try:
            with os.fdopen(Tree(str(self._root)).open_file(f"{project}/{secret.name}/{secret.key}"), "rb") as file:
                data = file.read(_LARGEST + 1)
            text = data.decode()
        except FileNotFoundError:
            raise NoSecret(
                f"there is no secret {secret.name!r} with a key {secret.key!r}: put its value into {path}"
            ) from None
        except (OutsideError, NotAFileError, OSError, UnicodeDecodeError) as problem:
            raise NoSecret(f"secret {path} can't be read: {problem}") from None
        if len(data) > _LARGEST or "\0" in text:
            raise NoSecret(f"secret {path} can't be a variable's value: it is too long, or holds a NUL")
        return text.removesuffix("\n").removesuffix("\r")
