"""What can go wrong in this room.

    ElearnError
    ├── Invalid
    │   └── NotOffered           the cloud has no such backend
    ├── Forbidden
    │   └── ReadOnly             a write to a read-only datastore
    ├── NotFound
    │   ├── NoSuchDatastore
    │   └── NoSuchFile
    ├── Conflict
    │   ├── NameTaken
    │   ├── NotReady             files of a datastore that is not ready
    │   └── InUse                trainings that are not freed mount it
    └── Internal
        └── IllegalTransitionError   a mistake in our own code

(The statuses are those of the parents.)
"""

from collections.abc import Sequence

from shared.contracts.problem import FieldError
from shared.errors import Conflict, Forbidden, Internal, Invalid, NotFound


class NotOffered(Invalid):
    def __init__(self, cloud: str, backend: str, offered: Sequence[str], hint: str = "") -> None:
        message = f"the {cloud} cloud offers: {', '.join(offered)}" + (f"; {hint}" if hint else "")
        super().__init__(f"{backend}: {message}", [FieldError(field=backend, message=message)])


class ReadOnly(Forbidden):
    def __init__(self, name: str) -> None:
        super().__init__(f"datastore {name} is read-only; files can't be written or deleted in it")


class NoSuchDatastore(NotFound):
    def __init__(self, project: str, name: str) -> None:
        super().__init__(f"there is no datastore {name} in project {project}")


class NoSuchFile(NotFound):
    pass


class NameTaken(Conflict):
    def __init__(self, name: str, state: str) -> None:
        super().__init__(f"there is a datastore {name} already ({state}); choose another name or delete it first")


class NotReady(Conflict):
    def __init__(self, name: str, state: str, reason: str) -> None:
        why = f": {reason}" if reason else ""
        super().__init__(f"datastore {name} is {state}{why}")


class InUse(Conflict):
    def __init__(self, name: str, trainings: Sequence[str]) -> None:
        shown = ", ".join(trainings[:5]) + (f" and {len(trainings) - 5} more" if len(trainings) > 5 else "")
        super().__init__(f"datastore {name} is mounted by {shown}; wait until freed, or stop and free what is left")


class IllegalTransitionError(Internal):
    pass
