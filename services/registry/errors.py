"""What can go wrong in this room.

    ElearnError
    ├── NotFound
    │   ├── NoSuchModel
    │   ├── NoSuchVersion
    │   └── NoSuchAlias
    └── Conflict
        ├── VersionNotReady      it is being saved, or could not be
        ├── HasAlias             an alias points at it
        └── IsServed             a serving serves it

(The statuses are those of the parents.)
"""

from collections.abc import Sequence

from shared.errors import Conflict, NotFound


class NoSuchModel(NotFound):
    def __init__(self, project: str, name: str) -> None:
        super().__init__(f"there is no model {name} in project {project}")


class NoSuchVersion(NotFound):
    def __init__(self, model: str, number: int) -> None:
        super().__init__(f"model {model} has no version {number}")


class NoSuchAlias(NotFound):
    def __init__(self, model: str, alias: str) -> None:
        super().__init__(f"model {model} has no alias {alias}")


class VersionNotReady(Conflict):
    def __init__(self, model: str, number: int, state: str, reason: str) -> None:
        why = f": {reason}" if reason else ""
        super().__init__(f"version {number} of model {model} is {state}{why}")


class HasAlias(Conflict):
    def __init__(self, model: str, number: int, aliases: Sequence[str]) -> None:
        super().__init__(
            f"{_names('alias', 'aliases', aliases)} of model {model} at version {number}; move or delete it first"
        )


class IsServed(Conflict):
    def __init__(self, what: str, servings: Sequence[str]) -> None:
        super().__init__(f"{what} is served by {', '.join(servings)}; update or delete what serves it first")


def _names(one: str, many: str, names: Sequence[str]) -> str:
    return f"{one if len(names) == 1 else many} {', '.join(names)}"
