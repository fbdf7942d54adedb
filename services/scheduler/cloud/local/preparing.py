"""What a task's process is started with: environment, command, directories."""

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from services.scheduler.cloud.port import Examination, Launch
from services.scheduler.errors import CannotLaunch
from services.scheduler.frameworks.port import Addresses, Framework
from services.scheduler.model import MountPlan, TaskPlan
from shared.archive import unpack
from shared.beneath import NotAFileError, OutsideError, Tree
from shared.contracts.datastore import LocalVolume
from shared.contracts.problem import FieldError
from shared.contracts.training import TrainingSpec
from shared.local import directories
from shared.local.directories import Capabilities, Mount
from shared.local.spec import BindMount

_log = structlog.get_logger(__name__)

VENV: Final = "venv:"
_PYTHONS: Final = frozenset({"python", "python3"})
_PASSED_ON: Final = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TZ",
    "USER",
)
"""Of our own environment a task gets these; the rest holds what is ours alone (the database's password)."""


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """The Python that ``python`` means: elearn's own, or a virtual environment's."""

    python: Path

    @property
    def bin(self) -> str:
        return str(self.python.parent)


def interpreter_for(image: str | None, own: Path) -> Interpreter:
    """What ``python`` means for a training of this image."""
    if image is not None and image.startswith(VENV):
        return Interpreter(python=Path(image.removeprefix(VENV)) / "bin" / "python")
    return Interpreter(python=own)


def is_plain(spec: TrainingSpec) -> bool:
    """Whether nothing of a spec has to be looked for on disk: elearn's own Python runs it."""
    return spec.command[0] in _PYTHONS and not (spec.image or "").startswith(VENV)


def examine(spec: TrainingSpec, own: Path, capabilities: Capabilities, environ: Mapping[str, str]) -> Examination:
    """What this machine can't do of a spec, or does in its own way. Blocks briefly, unless it is plain."""
    errors, notes = [], []
    if spec.image is not None and spec.image.startswith(VENV):
        python = interpreter_for(spec.image, own).python
        if not python.is_absolute() or not os.access(python, os.X_OK):
            message = f"there is no Python at {python}; name the folder of a virtual environment"
            errors.append(FieldError(field="image", message=message))
    elif spec.image is not None:
        notes.append(
            f"image {spec.image} is not used: the local cloud runs the command in {own.parent.parent} "
            f"(name another Python with image: venv:PATH)"
        )
    if (problem := _command_problem(spec, own, environ)) is not None:
        errors.append(FieldError(field="command", message=problem))
    if any(mount.read_only for mount in spec.mounts) and not capabilities.enforces_read_only:
        notes.append(f"read_only is not enforced on this machine: {capabilities.why}")
    return Examination(errors=tuple(errors), notes=tuple(notes))


def _command_problem(spec: TrainingSpec, own: Path, environ: Mapping[str, str]) -> str | None:
    """A program that can't be found, where that is certain before there is a working directory."""
    program = spec.command[0]
    if program in _PYTHONS or "{" in program:
        return None
    if "/" not in program:
        path = spec.env.get("PATH") or _path(interpreter_for(spec.image, own), environ)
        if shutil.which(program, path=path) is None and not any(not part.startswith("/") for part in path.split(":")):
            return f"command not found: {program} (in PATH {path})"
        return None
    if program.startswith("/") and not any(mount.path.startswith("/") for mount in spec.mounts):
        if not Path(program).exists():
            return f"command not found: {program}"
        if not os.access(program, os.X_OK) or Path(program).is_dir():
            return f"{program} is not a program that may be executed"
        return None
    if spec.code is None and not spec.mounts and not program.startswith("/"):
        return f"command not found: {program} (the working directory is empty: there is no code)"
    return None


def _path(interpreter: Interpreter, environ: Mapping[str, str]) -> str:
    return f"{interpreter.bin}:{environ.get('PATH', os.defpath)}"


def command_of(
    launch: Launch, task: TaskPlan, addresses: Addresses, framework: Framework, own: Path
) -> tuple[str, ...]:
    """The start command of a task."""
    words = framework.command(launch.spec.command, addresses, task.role, task.index)
    if words[0] in _PYTHONS:
        return (str(interpreter_for(launch.spec.image, own).python), *words[1:])
    return words


def environment_of(
    launch: Launch,
    task: TaskPlan,
    addresses: Addresses,
    framework: Framework,
    own: Path,
    cuda: Mapping[str, str],
    environ: Mapping[str, str],
    secrets: Mapping[str, str],
) -> dict[str, str]:
    """The whole environment of a task.

    Args:
        secrets: values that were looked up, by variable.
    """
    interpreter = interpreter_for(launch.spec.image, own)
    env = {name: environ[name] for name in _PASSED_ON if name in environ}
    env["PATH"] = _path(interpreter, environ)
    env["PYTHONUNBUFFERED"] = "1"
    if (interpreter.python.parent.parent / "pyvenv.cfg").exists():
        env["VIRTUAL_ENV"] = str(interpreter.python.parent.parent)
    return {
        **env,
        **launch.spec.env,
        **secrets,
        "ELEARN_PROJECT": launch.project,
        "ELEARN_TRAINING": launch.name,
        "ELEARN_ROLE": task.role,
        "ELEARN_INDEX": str(task.index),
        "ELEARN_ATTEMPT": str(launch.attempt),
        **framework.environment(addresses, task.role, task.index),
        **cuda,
    }


def needs_addresses(launch: Launch) -> bool:
    """Whether the tasks are told where the others are."""
    return len(launch.plan) > 1 or any("_hosts}" in word for word in launch.spec.command)


# -- directories; all of it blocks ------------------------------------------------------------------


def sources(mounts: Sequence[MountPlan]) -> tuple[Mount, ...]:
    """The folders to mount, own ones made.

    Raises:
        CannotLaunch: a folder is not there, or can't be made.
    """
    return tuple(Mount(source=source_of(mount), path=mount.path, read_only=mount.read_only) for mount in mounts)


def source_of(mount: MountPlan, *, make: bool = True) -> str:
    """The folder of this machine that a mount shows.

    Raises:
        CannotLaunch: it is not there, or can't be made.
    """
    if not isinstance(mount.volume, LocalVolume):
        raise CannotLaunch(f"datastore {mount.datastore!r} is not a folder of this machine")
    tree = Tree(mount.volume.path)
    try:
        with tree.directory(mount.folder, make=make and not mount.read_only) as descriptor:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except FileNotFoundError:
        where = f"folder {mount.folder!r} of " if mount.folder else ""
        raise CannotLaunch(f"{where}datastore {mount.datastore!r} is not there") from None
    except (OutsideError, NotAFileError) as problem:
        raise CannotLaunch(f"datastore {mount.datastore!r}: {problem}") from None
    except (PermissionError, NotADirectoryError) as problem:
        raise CannotLaunch(
            f"datastore {mount.datastore!r}: {mount.folder or 'its folder'}: {problem.strerror}"
        ) from None


def working_directory(
    path: Path, archive: Path | None, mounts: Sequence[Mount], capabilities: Capabilities
) -> tuple[BindMount, ...]:
    """Make a task's working directory, whole or not at all; one that is there is left as it is."""
    if not path.is_dir():
        if archive is not None:
            unpack(archive, path)
        else:
            path.mkdir(parents=True, exist_ok=True)
    return directories.prepare(path, mounts, capabilities)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it; links are not followed; none is success.

    A task may have taken rights away from its own folders: they are given back. What still can't be removed stays,
    and is told in the log: it must not keep the resources of a task that has ended.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError:
        for folder, _, _ in os.walk(path):
            with contextlib.suppress(OSError):
                Path(folder).chmod(0o700)
        try:
            shutil.rmtree(path)
        except OSError as problem:
            _log.warning("left behind", path=str(path), error=str(problem))
