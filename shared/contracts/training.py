"""Trainings: one run of a start command as a TensorFlow cluster."""

from typing import Annotated, Literal

import msgspec

from shared.contracts.common import (
    Chunk,
    Done,
    Instant,
    Labels,
    ListRequest,
    Name,
    Named,
    Page,
    Quantity,
)
from shared.contracts.rpc import Verb

TrainingState = Literal["queued", "starting", "running", "succeeded", "failed", "stopped"]
TaskState = Literal["pending", "starting", "running", "succeeded", "failed", "stopped", "lost"]
RoleName = Literal["chief", "worker", "ps", "evaluator"]
ROLES: tuple[RoleName, ...] = ("chief", "worker", "ps", "evaluator")
ENDED: frozenset[TrainingState] = frozenset({"succeeded", "failed", "stopped"})


class Mount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A datastore at a path of every task.

    Attributes:
        path: relative to the working directory, or absolute.
        sub_path: a folder of the datastore to mount in place of its top.
        own: a fresh folder for this training, named after it, the same in all its attempts.
    """

    datastore: Name
    path: str
    sub_path: str = ""
    read_only: bool = False
    own: bool = False


class Role(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How many tasks of one role, and what each of them gets.

    Attributes:
        cpu: cores (``1``, ``0.5``, ``500m``); None: the cloud's default.
        memory: bytes (``2Gi``); None: the cloud's default.
        gpu: whole GPUs for each task.
        gpus, gpus_per_task: in place of ``replicas`` and ``gpu``: as many tasks as it takes to hold
            ``gpus`` in all; the last task gets the remainder.
    """

    replicas: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None
    cpu: Quantity | None = None
    memory: Quantity | None = None
    gpu: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    gpus: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    gpus_per_task: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None


class Roles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The cluster. Nothing at all means one chief; ``master`` is the old name of ``chief``."""

    chief: Role | None = None
    master: Role | None = None
    worker: Role | None = None
    ps: Role | None = None
    evaluator: Role | None = None


class Save(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """On success, save the SavedModel at ``path`` (below a writable mount) as a version of ``model``."""

    model: Name
    path: str


class SecretKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a secret value lies: never the value itself.

    Attributes:
        name: of the secret: on Kubernetes a Secret in the project's namespace, on one machine a folder
            ``$ELEARN_HOME/secrets/<project>/<name>``.
        key: which of its values: a key of the Secret, or a file in the folder.
    """

    name: str
    key: str


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a user asks for.

    Attributes:
        image: a container image; on the local cloud ``venv:PATH`` names a virtual environment whose
            Python runs the command, anything else is not used there and a note says so.
        command: the start command; ``{role} {index} {ps_hosts} {worker_hosts} {chief_hosts}`` in it are
            substituted. Other braces stay as they are.
        code: digest (``sha256:…``) of an uploaded archive that becomes the working directory. The
            command line and the client accept a folder and upload it.
        secrets: variables whose values are looked up where the tasks run, and kept nowhere else.
        retries: attempts after the first.
        deadline: wall time from the first start (``2h``, or seconds).
        priority: higher goes first.
        tensorboard: folder of event files, below a mount.
    """

    name: Name
    command: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    kind: Literal["training"] = "training"
    image: str | None = None
    code: str | None = None
    env: dict[str, str] = {}
    secrets: dict[str, SecretKey] = {}
    mounts: tuple[Mount, ...] = ()
    roles: Roles = Roles()
    retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    deadline: Quantity | None = None
    priority: Annotated[int, msgspec.Meta(ge=-1000, le=1000)] = 0
    labels: Labels = {}
    tensorboard: str | None = None
    save: Save | None = None


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One process of a training.

    Attributes:
        restarts: how often it was started again within its attempt.
        exit_code: of its last end; None while it runs, or where a signal ended it.
        signal: number of the signal that ended it.
        gpus: the devices it was given.
    """

    name: str
    role: RoleName
    index: int
    state: TaskState
    address: str = ""
    node: str = ""
    gpus: tuple[str, ...] = ()
    restarts: int = 0
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    started_at: Instant | None = None
    finished_at: Instant | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One launch of a training's tasks, as it ended or stands."""

    number: int
    state: TrainingState
    reason: str = ""
    started_at: Instant | None = None
    running_at: Instant | None = None
    finished_at: Instant | None = None
    freed_at: Instant | None = None
    tasks: tuple[Task, ...] = ()


class Training(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A training as users see it.

    Attributes:
        reason: why it is in this state, in words; while queued, what it waits for.
        attempt: number of the current attempt, from 1; 0 before the first.
        tasks: of the current attempt.
        attempts: those before the current one, and the current one once it has ended.
        freed_at: when all compute was given back.
        unfreed: why it has not been given back yet although it is not wanted any more, in words.
        notes: what the user should know of how the spec is taken in this cloud.
    """

    project: Name
    name: Name
    spec: TrainingSpec
    state: TrainingState
    created_at: Instant
    reason: str = ""
    attempt: int = 0
    created_by: str = ""
    started_at: Instant | None = None
    running_at: Instant | None = None
    finished_at: Instant | None = None
    freed_at: Instant | None = None
    unfreed: str = ""
    tasks: tuple[Task, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()
    cause: str = ""


class PlannedTask(msgspec.Struct, frozen=True, kw_only=True):
    """One task as it would be started: resources resolved, placeholders filled, addresses by name."""

    name: str
    role: RoleName
    index: int
    cpu: float
    memory: int
    gpu: int
    command: tuple[str, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``?dry_run=true`` answers: what a submit would do now.

    Attributes:
        name: the name that the training would get.
        fits_now: it would start at once.
        reason: what it would wait for, in words.
    """

    project: Name
    name: Name
    spec: TrainingSpec
    tasks: tuple[PlannedTask, ...]
    cpu: float
    memory: int
    gpu: int
    fits_now: bool
    reason: str = ""
    notes: tuple[str, ...] = ()


class QueueEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A training that waits, in the order in which trainings will be admitted."""

    position: int
    project: Name
    name: Name
    priority: int
    queued_at: Instant
    reason: str
    cpu: float
    memory: int
    gpu: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Resources in use now and over time, of one project.

    Attributes:
        cpu, memory, gpu: held by trainings now; cores, bytes, devices.
        cpu_seconds, gpu_seconds: reserved so far: count times wall seconds.
    """

    project: Name
    running: int
    queued: int
    cpu: float
    memory: int
    gpu: int
    cpu_seconds: float
    gpu_seconds: float


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A machine: what it has and what is handed out."""

    name: str
    cpu: float
    memory: int
    gpu: int
    cpu_used: float = 0.0
    memory_used: int = 0
    gpu_used: int = 0
    gpu_type: str = ""


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v1/cluster``."""

    cloud: str
    nodes: tuple[Node, ...]


class TrainingEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.training.<event>.<project>.<name>``."""

    training: Training


class TaskEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``elearn.v1.task.<event>.<project>.<training>``."""

    training: Name
    attempt: int
    task: Task


# -- verbs ------------------------------------------------------------------------------------------


class SubmitTraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    spec: TrainingSpec


class StopTraining(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    name: Name
    reason: str = ""


class ReadLog(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for a part of one task's log.

    Attributes:
        task: ``worker-1``.
        attempt: None for the current one.
        offset: byte to begin at; a negative one counts from the end.
        wait: seconds to wait for more where there is nothing yet and the task still runs (30 at most).
    """

    project: Name
    name: Name
    task: str
    attempt: int | None = None
    offset: int = 0
    length: int = 256 * 1024
    wait: float = 0.0


class FindOutput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks where a path of a training lies, seen from its working directory."""

    project: Name
    name: Name
    path: str


class Lineage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a model version comes from."""

    training: Name | None = None
    attempt: int | None = None
    image: str | None = None
    code: str | None = None
    command: tuple[str, ...] = ()
    inputs: tuple[Mount, ...] = ()
    datastore: Name | None = None
    path: str = ""
    cause: str = ""
    created_by: str = ""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """Where a path of a training lies: a datastore and a path in it, with the lineage so far."""

    datastore: Name
    path: str
    lineage: Lineage


class OpenBoard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks for a training's TensorBoard.

    Attributes:
        path_prefix: the path under which the gateway serves it.
    """

    project: Name
    name: Name
    path_prefix: str


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """An open TensorBoard: the base URL that the gateway proxies; it speaks with ``path_prefix``."""

    url: str


class CodeChunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One part of an archive of code; with ``end`` the whole must hash to ``digest``.

    Attributes:
        upload: a token that the caller chose for this upload; parts come in order.
    """

    project: Name
    digest: str
    upload: str
    offset: int
    data: bytes
    end: bool = False


class CodeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    digest: str


class ReadCode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name
    digest: str
    offset: int = 0


class CodeArchive(msgspec.Struct, frozen=True, kw_only=True):
    """An archive of code that is stored whole and has been checked."""

    project: Name
    digest: str
    size: int
    created_at: Instant


class ProjectRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    project: Name


class AllProjects(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Asks about every project at once."""


SUBMIT = Verb("scheduler", "submit", SubmitTraining, Training)
PLAN = Verb("scheduler", "plan", SubmitTraining, Plan)
GET = Verb("scheduler", "get", Named, Training)
LIST = Verb("scheduler", "list", ListRequest, Page[Training])
DELETE = Verb("scheduler", "delete", Named, Done)
STOP = Verb("scheduler", "stop", StopTraining, Training)
FREE = Verb("scheduler", "free", Named, Training)
RETRY = Verb("scheduler", "retry", Named, Training)
READ_LOG = Verb("scheduler", "read_log", ReadLog, Chunk)
FIND_OUTPUT = Verb("scheduler", "find_output", FindOutput, Output)
OPEN_BOARD = Verb("scheduler", "open_board", OpenBoard, Board)
QUEUE = Verb("scheduler", "queue", ListRequest, Page[QueueEntry])
USAGE = Verb("scheduler", "usage", ProjectRequest, Usage)
CLUSTER = Verb("scheduler", "cluster", AllProjects, Cluster)
PUT_CODE = Verb("scheduler", "put_code", CodeChunk, Done)
STAT_CODE = Verb("scheduler", "stat_code", CodeRequest, CodeArchive)
READ_CODE = Verb("scheduler", "read_code", ReadCode, Chunk)
