"""What only the gateway says.

ElearnError
├── NotFound
│   └── UnknownProject     404  and so for every path beneath it
├── MethodNotAllowed       405  with the methods that the path has
├── RangeNotSatisfiable    416  with the size that the thing has
├── Unauthenticated
│   └── BadToken           401  no token, a wrong one, or one that has expired
└── Unsupported
    └── NotOffered         501  a path of elearn's API that this release does not serve yet
"""

from collections.abc import Iterable

from shared.errors import ElearnError, NotFound, Unauthenticated, Unsupported


class UnknownProject(NotFound):
    """Nothing beneath a project that does not exist."""

    def __init__(self, project: str) -> None:
        super().__init__(
            f"there is no project {project[:60]!r}; create it with POST /v1/projects, or list those there are"
        )


class MethodNotAllowed(ElearnError):
    """The path exists, the method does not."""

    status = 405
    title = "Method not allowed"
    type = "method-not-allowed"

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = tuple(sorted(set(allowed)))
        super().__init__(f"{method} is not a method of {path}; use {' or '.join(self.allowed)}")


class RangeNotSatisfiable(ElearnError):
    """A range that begins after the end."""

    status = 416
    title = "Range not satisfiable"
    type = "range-not-satisfiable"

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"the range lies outside of the {size} bytes that there are")


class BadToken(Unauthenticated):
    """The request shows no token that is good."""


class NotOffered(Unsupported):
    """A path that is named in elearn's design and not served by this release."""
