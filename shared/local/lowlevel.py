"""What the keeper needs of the kernel and of JSON, without the modules that would double its start time.

``json``, ``ctypes`` and ``signal`` cost as much as starting Python itself; the C modules below them cost nothing. All
that is private to CPython is used here.
"""
# ruff: noqa: PTH123, PTH208

import _ctypes
import _json
import os

TYPE_CHECKING = False  # `typing` costs 5 ms
if TYPE_CHECKING:
    from typing import Any

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


class _JsonContext:
    """What the C scanner asks of the decoder it belongs to."""

    strict = True
    object_hook = object_pairs_hook = parse_constant = None
    parse_float, parse_int = float, int
    memo: dict[str, str] = {}  # noqa: RUF012


def read_json(path: str) -> "Any":
    """The JSON document in a file; ValueError or StopIteration where it is none."""
    with open(path, encoding="utf-8") as file:
        return _json.make_scanner(_JsonContext())(file.read(), 0)[0]  # type: ignore[arg-type]


def json_of(value: object) -> str:
    """A JSON document of plain values."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return str(_json.encode_basestring_ascii(value))
    if isinstance(value, dict):
        return "{" + ",".join(f"{json_of(str(key))}:{json_of(each)}" for key, each in value.items()) + "}"
    raise TypeError(f"can't write {type(value)}")


def prctl(option: int, value: int) -> None:
    """See prctl(2)."""
    function = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None: this program
    if _ctypes.call_function(function, (option, value, 0, 0, 0)) != 0:
        raise OSError(f"prctl({option}, {value}) was refused")


def identity(pid: int) -> dict[str, object]:
    """What :class:`shared.local.identity.ProcessIdentity` is."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return {"pid": pid, "started": started, "boot": file.read().strip()}


def parents() -> dict[int, int]:
    """Parent by pid, for every process of the machine."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    found[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue  # it went away while we looked
    return found


def descendants(ancestor: int) -> list[int]:
    """Everything that was started by a process, or by what it started."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found, frontier = [], [ancestor]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def send(pid: int, signal: int) -> None:
    """Signal a process; one that has gone is fine."""
    try:
        os.kill(pid, signal)
    except (ProcessLookupError, PermissionError):
        return  # gone already, or a set-user-ID program that is not ours to end
