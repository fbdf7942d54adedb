"""The scheduler's errors.

ElearnError
├── NotFound
│   ├── NoSuchTraining
│   ├── NoSuchTask
│   └── NoSuchCode
├── Conflict
│   └── WrongState          the training's state forbids what was asked
├── Internal
│   └── IllegalTransition   a mistake of our own in the lifecycle
└── LaunchError             what a cloud answers to `launch`
    ├── NoRoomLeft          resources went elsewhere meanwhile: back to the queue
    └── CannotLaunch        it will never start as it stands: the training fails
"""

from shared.errors import Conflict, ElearnError, Internal, NotFound


class NoSuchTraining(NotFound):
    def __init__(self, project: str, name: str) -> None:
        super().__init__(f"there is no training {name!r} in project {project!r}")


class NoSuchTask(NotFound):
    def __init__(self, name: str, task: str, known: tuple[str, ...]) -> None:
        have = ", ".join(known[:8]) + (" and more" if len(known) > 8 else "")
        super().__init__(f"training {name!r} has no task {task!r}; it has {have or 'none yet'}")


class NoSuchCode(NotFound):
    def __init__(self, project: str, digest: str) -> None:
        super().__init__(
            f"no archive of code {digest} in project {project!r}; "
            f"upload it first: PUT /v1/projects/{project}/code/{digest}"
        )


class WrongState(Conflict):
    """The training's state forbids it."""


class IllegalTransition(Internal):
    """A change that the lifecycle does not know, with the training's story."""


class LaunchError(ElearnError):
    """A cloud did not launch an attempt and left nothing of it behind."""

    status = 503
    title = "Not launched"
    type = "not-launched"


class NoRoomLeft(LaunchError):
    """The resources are not free any more."""


class CannotLaunch(LaunchError):
    """The same launch would fail again; ``detail`` says what to change."""
