"""What a training's spec means: its errors by field, its tasks, its mounts: pure."""

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from services.scheduler.frameworks.port import Framework
from services.scheduler.model import Capabilities, Demand, MountPlan, TaskPlan
from shared.contracts.common import (
    Quantity,
    label_errors,
    parse_cpu,
    parse_duration,
    parse_memory,
    relative_path_problem,
)
from shared.contracts.datastore import ClaimVolume, MountableDatastore
from shared.contracts.problem import FieldError
from shared.contracts.training import ROLES, Mount, Role, RoleName, TrainingSpec

DEFAULT_CPU: Final = 0.25
DEFAULT_MEMORY: Final = 2**30
MOST_TASKS: Final = 1000
MOST_BYTES: Final = 128 * 1024
"""Of a whole spec, as JSON."""
LONGEST_BASE: Final = 35
"""Of a name as submitted: ``-1234`` follows it."""

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_RESERVED_ENV: Final = frozenset({"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"})
_SECRET_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SECRET_KEY: Final = re.compile(r"[-._a-zA-Z0-9]+")
_LONGEST_SECRET: Final = 253
_SYSTEM: Final = ("/proc", "/sys", "/dev")
_SYSTEM_TOPS: Final = frozenset(
    "/" + name
    for name in ("", "bin", "boot", "dev", "etc", "home", "lib", "lib64", "opt", "proc", "root", "run", "sbin")
) | frozenset({"/sys", "/tmp", "/usr", "/var"})  # noqa: S108 - named to be refused


# -- roles ------------------------------------------------------------------------------------------


def roles_of(spec: TrainingSpec) -> dict[RoleName, Role]:
    """The roles that have tasks, ``master`` as ``chief``; one chief where nothing is asked for."""
    roles = spec.roles
    named: dict[RoleName, Role | None] = {
        "chief": roles.chief if roles.chief is not None else roles.master,
        "worker": roles.worker,
        "ps": roles.ps,
        "evaluator": roles.evaluator,
    }
    found = {role: named[role] for role in ROLES}
    present = {role: each for role, each in found.items() if each is not None and count_of(each) > 0}
    if found["chief"] is None and "worker" not in present and "ps" not in present:
        present = {"chief": Role(), **present}
    return present


def count_of(role: Role) -> int:
    """How many tasks a role has."""
    if role.gpus is not None:
        return -(-role.gpus // (role.gpus_per_task or 1))
    return 1 if role.replicas is None else role.replicas


def _counts(spec: TrainingSpec) -> dict[RoleName, int]:
    return {role: count_of(each) for role, each in roles_of(spec).items()}


def plan_tasks(spec: TrainingSpec, framework: Framework) -> tuple[TaskPlan, ...]:
    """Every task with its resources; the spec has no errors."""
    counts = _counts(spec)
    deciding = framework.decides(counts)
    tasks = []
    for role, each in roles_of(spec).items():
        for index in range(counts[role]):
            gpu = each.gpu
            if each.gpus is not None and each.gpus_per_task is not None:
                gpu = min(each.gpus_per_task, each.gpus - index * each.gpus_per_task)
            tasks.append(
                TaskPlan(
                    name=f"{role}-{index}",
                    role=role,
                    index=index,
                    demand=Demand(
                        cpu=DEFAULT_CPU if each.cpu is None else parse_cpu(each.cpu),
                        memory=DEFAULT_MEMORY if each.memory is None else parse_memory(each.memory),
                        gpu=gpu,
                    ),
                    decides=(role, index) == deciding,
                    on_failure=framework.on_failure(role, counts),
                )
            )
    return tuple(tasks)


# -- errors -----------------------------------------------------------------------------------------


def spec_errors(spec: TrainingSpec, framework: Framework, capabilities: Capabilities) -> list[FieldError]:
    """Everything that is wrong with a spec as it stands, whatever exists beside it."""
    errors = [
        *_name_errors(spec),
        *_size_errors(spec),
        *_command_errors(spec),
        *_env_errors(spec, framework),
        *_secret_errors(spec, framework),
        *_roles_errors(spec, framework),
        *_mount_errors(spec.mounts, capabilities),
        *_output_errors(spec),
        *label_errors("labels", spec.labels),
    ]
    if spec.code is not None and not _DIGEST.fullmatch(spec.code):
        errors.append(
            FieldError(
                field="code",
                message=f"{spec.code!r} is not the digest of an uploaded archive (sha256: and 64 hex digits)",
            )
        )
    if spec.deadline is not None:
        errors += _quantity_errors("deadline", parse_duration, spec.deadline)
    return errors


def _name_errors(spec: TrainingSpec) -> list[FieldError]:
    if len(spec.name) <= LONGEST_BASE:
        return []
    message = f"at most {LONGEST_BASE} characters: -1, -2, … is added to it"
    return [FieldError(field="name", message=message)]


def _size_errors(spec: TrainingSpec) -> list[FieldError]:
    errors = []
    size = len(msgspec.json.encode(spec))
    if size > MOST_BYTES:
        message = f"{size:,} bytes; at most {MOST_BYTES:,} are possible: put what is long into a file"
        errors.append(FieldError(field="body", message=message))
    if spec.image is not None and (not spec.image.strip() or "\0" in spec.image):
        errors.append(FieldError(field="image", message="is no name of an image"))
    return errors


def _command_errors(spec: TrainingSpec) -> list[FieldError]:
    errors = []
    if not spec.command[0].strip():
        errors.append(FieldError(field="command", message="its first word, the program, is empty"))
    for position, word in enumerate(spec.command):
        if "\0" in word:
            errors.append(FieldError(field=f"command.{position}", message="must not contain a NUL"))
    return errors


def _env_errors(spec: TrainingSpec, framework: Framework) -> list[FieldError]:
    errors = []
    for name, value in spec.env.items():
        message = _variable_problem(name, framework)
        if message is None and "\0" in value:
            message = "must not contain a NUL"
        if message is not None:
            errors.append(FieldError(field=f"env.{name}", message=message))
    return errors


def _variable_problem(name: str, framework: Framework) -> str | None:
    if not _ENV_NAME.fullmatch(name):
        return "is not a legal name of a variable: letters, digits and _, not beginning with a digit"
    if name.startswith("ELEARN_") or name in _RESERVED_ENV or name in framework.reserved_env:
        return "is set by elearn for every task"
    return None


def _secret_errors(spec: TrainingSpec, framework: Framework) -> list[FieldError]:
    errors = []
    for name, secret in spec.secrets.items():
        message = _variable_problem(name, framework)
        if message is None and name in spec.env:
            message = "is set in env as well; give one of the two"
        if message is not None:
            errors.append(FieldError(field=f"secrets.{name}", message=message))
        if len(secret.name) > _LONGEST_SECRET or not _SECRET_NAME.fullmatch(secret.name):
            message = f"{secret.name!r} is no name of a secret: lower case letters, digits, '-' and '.'"
            errors.append(FieldError(field=f"secrets.{name}.name", message=message))
        if len(secret.key) > _LONGEST_SECRET or not _SECRET_KEY.fullmatch(secret.key) or not secret.key.strip("."):
            message = f"{secret.key!r} is no key of a secret: letters, digits, '-', '_' and '.'"
            errors.append(FieldError(field=f"secrets.{name}.key", message=message))
    return errors


def _roles_errors(spec: TrainingSpec, framework: Framework) -> list[FieldError]:
    errors = []
    named = {
        "chief": spec.roles.chief,
        "master": spec.roles.master,
        "worker": spec.roles.worker,
        "ps": spec.roles.ps,
        "evaluator": spec.roles.evaluator,
    }
    if spec.roles.chief is not None and spec.roles.master is not None:
        errors.append(FieldError(field="roles.master", message="is the old name of chief, which is given as well"))
    for name, role in named.items():
        if role is not None:
            errors += _role_errors(f"roles.{name}", role)
    if errors:
        return errors
    counts = _counts(spec)
    if sum(counts.values()) > MOST_TASKS:
        message = f"{sum(counts.values())} tasks in all; at most {MOST_TASKS} are possible"
        return [FieldError(field="roles", message=message)]
    return framework.shape_errors(counts)


def _role_errors(field: str, role: Role) -> list[FieldError]:
    errors = []
    if role.cpu is not None:
        errors += _quantity_errors(f"{field}.cpu", parse_cpu, role.cpu, above_zero=True)
    if role.memory is not None:
        errors += _quantity_errors(f"{field}.memory", parse_memory, role.memory, above_zero=True)
    if role.gpus is not None:
        if role.gpus_per_task is None:
            errors.append(FieldError(field=f"{field}.gpus_per_task", message="must be given together with gpus"))
        if role.replicas is not None:
            errors.append(FieldError(field=f"{field}.replicas", message="follows from gpus; give one of the two"))
        if role.gpu:
            errors.append(FieldError(field=f"{field}.gpu", message="gpus_per_task says it; give one of the two"))
    elif role.gpus_per_task is not None:
        errors.append(FieldError(field=f"{field}.gpus", message="must be given together with gpus_per_task"))
    return errors


def _quantity_errors(
    field: str, parse: Callable[[Quantity], float], value: Quantity, *, above_zero: bool = False
) -> list[FieldError]:
    try:
        parsed = parse(value)
    except ValueError as error:
        return [FieldError(field=field, message=str(error))]
    if above_zero and parsed <= 0:
        return [FieldError(field=field, message="must be more than 0")]
    return []


# -- mounts -----------------------------------------------------------------------------------------


def normal_path(path: str) -> str:
    """A mount's or an output's path without ``.``, ``..`` and doubled slashes."""
    normal = posixpath.normpath(path)
    return "/" + normal.lstrip("/") if path.startswith("/") else normal


def is_below(path: str, top: str) -> bool:
    """``path`` is ``top`` or lies below it; both normal."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def _mount_errors(mounts: Sequence[Mount], capabilities: Capabilities) -> list[FieldError]:
    errors: list[FieldError] = []
    taken: dict[str, str] = {}
    for position, mount in enumerate(mounts):
        field = f"mounts.{position}.path"
        problem = _mount_path_problem(mount.path, capabilities)
        if problem is None:
            path = normal_path(mount.path)
            for other, datastore in taken.items():
                if path == other:
                    problem = f"{path!r} is where {datastore} is mounted already"
                elif is_below(path, other) or is_below(other, path):
                    problem = f"{path!r} and {other!r}, where {datastore} is mounted, lie in each other"
            taken.setdefault(path, mount.datastore)
        if problem is not None:
            errors.append(FieldError(field=field, message=problem))
        if mount.sub_path and (problem := relative_path_problem(mount.sub_path)) is not None:
            errors.append(FieldError(field=f"mounts.{position}.sub_path", message=problem))
        if mount.own and mount.read_only:
            message = "a fresh folder that can't be written is of no use: own and read_only exclude each other"
            errors.append(FieldError(field=f"mounts.{position}.read_only", message=message))
    return errors


def _mount_path_problem(path: str, capabilities: Capabilities) -> str | None:
    if not path.startswith("/"):
        problem = relative_path_problem(path)
        if problem is None and normal_path(path) == ".":
            return "is the working directory itself: mount at a folder in it"
        return problem
    if "\0" in path:
        return "must not contain a NUL"
    if ".." in path.split("/"):
        return f"{path!r} must not contain '..'"
    normal = normal_path(path)
    if normal in _SYSTEM_TOPS or any(is_below(normal, top) for top in _SYSTEM):
        return f"{normal!r} belongs to the system: choose a folder such as /data"
    if not capabilities.absolute_mounts:
        why = capabilities.absolute_mounts_missing or "this cloud can't mount at absolute paths"
        return f"{normal!r}: {why}; use a path relative to the working directory"
    return None


def _output_errors(spec: TrainingSpec) -> list[FieldError]:
    errors = []
    outputs = [("tensorboard", spec.tensorboard, False)]
    if spec.save is not None:
        outputs.append(("save.path", spec.save.path, True))
    for field, path, writable in outputs:
        if path is None:
            continue
        problem = None if path.startswith("/") else relative_path_problem(path)
        if problem is None and "\0" in path:
            problem = "must not contain a NUL"
        if problem is None and ".." in path.split("/"):
            problem = f"{path!r} must not contain '..'"
        mount = None if problem else _mount_for(spec.mounts, path)
        if problem is None and mount is None:
            problem = f"{path!r} must lie below a mount: only what is in a datastore stays"
        elif mount is not None and writable and mount.read_only:
            problem = f"{path!r} lies below the mount at {mount.path!r}, which is read-only"
        if problem is not None:
            errors.append(FieldError(field=field, message=problem))
    return errors


def _mount_for(mounts: Sequence[Mount], path: str) -> Mount | None:
    normal = normal_path(path)
    return next((mount for mount in mounts if is_below(normal, normal_path(mount.path))), None)


def plan_mounts(
    spec: TrainingSpec,
    name: str,
    datastores: Mapping[str, MountableDatastore],
    capabilities: Capabilities,
) -> tuple[tuple[MountPlan, ...], list[FieldError], list[str]]:
    """Mounts with their datastores resolved, what is wrong with them, and what the user should know.

    Args:
        name: the training's, after which an own folder is named.
        datastores: by name; those that are missing have been reported.
    """
    plans, errors, notes = [], [], []
    for position, mount in enumerate(spec.mounts):
        datastore = datastores.get(mount.datastore)
        if datastore is None:
            continue
        kind = type(datastore.volume).__struct_config__.tag
        if kind not in capabilities.volumes:
            message = f"this cloud can't mount {mount.datastore!r} (a volume of kind {kind})"
            errors.append(FieldError(field=f"mounts.{position}.datastore", message=message))
        if datastore.read_only and mount.own:
            message = f"datastore {mount.datastore!r} is read-only: nothing of its own can be made in it"
            errors.append(FieldError(field=f"mounts.{position}.own", message=message))
        elif datastore.read_only and not mount.read_only:
            notes.append(f"{mount.path} can only be read: datastore {mount.datastore} is read-only")
        folder = normal_path(mount.sub_path) if mount.sub_path else ""
        folder = "" if folder == "." else folder
        if mount.own:
            folder = f"{folder}/{name}" if folder else name
        plans.append(
            MountPlan(
                datastore=mount.datastore,
                path=normal_path(mount.path),
                volume=datastore.volume,
                folder=folder,
                read_only=mount.read_only or datastore.read_only,
                own=mount.own,
            )
        )
    count, shared = sum(_counts(spec).values()), single_node_datastore(datastores)
    if shared and count > 1:
        notes.append(
            f"all {count} tasks must find room on one machine, as datastore {shared} is on a claim that one machine "
            "alone can mount"
        )
    if spec.save is not None and not errors:
        saved = find_output(plans, spec.save.path)
        if saved is not None and saved[0].read_only:
            message = f"{spec.save.path!r} lies in datastore {saved[0].datastore!r}, which is read-only"
            errors.append(FieldError(field="save.path", message=message))
    return tuple(plans), errors, notes


def single_node_datastore(datastores: Mapping[str, MountableDatastore]) -> str:
    """The first of these that one machine alone can mount, or "": every task mounts them all."""
    found = (
        name for name, each in datastores.items() if isinstance(each.volume, ClaimVolume) and each.volume.single_node
    )
    return next(found, "")


def find_output(mounts: Sequence[MountPlan], path: str) -> tuple[MountPlan, str] | None:
    """The mount below which a path of a training lies, and the path in its datastore."""
    normal = normal_path(path)
    for mount in mounts:
        if is_below(normal, mount.path):
            rest = normal[len(mount.path) :].lstrip("/")
            return mount, "/".join(part for part in (mount.folder, rest) if part)
    return None
