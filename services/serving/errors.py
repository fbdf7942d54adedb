"""What can go wrong in this room.

    ElearnError
    ├── NotFound
    │   ├── NoSuchServing
    │   └── NoSuchRevision
    ├── Conflict
    │   ├── NameTaken
    │   └── NothingToRollBackTo
    ├── Unsupported
    │   ├── NoTrafficSplit          the cloud can't spread requests over versions
    │   └── NoAutoscaling           the cloud can't let the number of replicas follow the load
    └── Internal
        └── IllegalTransitionError  a mistake in our own code

(The statuses are those of the parents. The model server has a tree of its own: server/errors.py.)
"""

from shared.errors import Conflict, Internal, NotFound, Unsupported


class NoSuchServing(NotFound):
    def __init__(self, project: str, name: str) -> None:
        super().__init__(f"there is no serving {name} in project {project}")


class NoSuchRevision(NotFound):
    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"serving {name} has no revision {number} in its history")


class NameTaken(Conflict):
    def __init__(self, name: str) -> None:
        super().__init__(f"there is a serving {name} already; choose another name, or change that one")


class NothingToRollBackTo(Conflict):
    def __init__(self, name: str) -> None:
        super().__init__(f"serving {name} has no earlier revision that was ready")


class NoTrafficSplit(Unsupported):
    def __init__(self, cloud: str) -> None:
        super().__init__(f"traffic: the {cloud} cloud can't spread requests over several versions")


class NoAutoscaling(Unsupported):
    def __init__(self, cloud: str) -> None:
        super().__init__(f"max_replicas: the {cloud} cloud can't let the number of replicas follow the load")


class IllegalTransitionError(Internal):
    pass
