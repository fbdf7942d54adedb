"""What several ELEARN_HOMEs of one user must not both take: real GPUs and ports, booked for the whole machine.

One small file under a lock in a folder that is ours alone. A claim names the ledger it belongs to; it counts while that
ledger's ``alive`` file is locked by anybody (its services, the keepers of its tasks), which the kernel undoes by itself
when they die. So a home that vanished leaves no claim behind that would have to be cleaned up.
"""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from shared.errors import Unavailable
from shared.local.identity import boot_id


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A booked resource.

    Attributes:
        alive: the file that is locked while the claim counts.
        owner: who holds it, in the words of the ledger it belongs to.
    """

    alive: str
    owner: str
    boot: str


class Book:
    """The claims of all homes of this user.

    Args:
        directory: where it lies; made with mode 0700, refused when it is another's or open to others.
    """

    def __init__(self, directory: Path | None = None) -> None:
        # Not TMPDIR nor XDG_RUNTIME_DIR: two sessions of one user could see different ones.
        self._directory = directory or Path(f"/tmp/elearn-{os.getuid()}")  # noqa: S108

    @contextmanager
    def open(self, alive: Path) -> Iterator["OpenBook"]:
        """The book under its lock, for the ledger whose alive file this is; changes are written when it closes.

        Raises:
            Unavailable: the folder can't be used safely.
        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as problem:
            raise Unavailable(f"{self._directory} can't be used: {problem.strerror}") from problem
        try:
            found = os.fstat(folder)
            if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise Unavailable(f"{self._directory} is not a folder of ours alone: remove it, or have it removed")
            fcntl.flock(folder, fcntl.LOCK_EX)
            path = self._directory / "claims.json"
            book = OpenBook(_read(path), str(alive))
            yield book
            if book.changed:
                _write(path, book.claims)
        finally:
            os.close(folder)


class OpenBook:
    """The book while it is locked."""

    def __init__(self, claims: dict[str, Claim], alive: str) -> None:
        self.claims = claims
        self.changed = False
        self._alive = alive
        self._boot = boot_id()

    def taken_by_others(self) -> dict[str, str]:
        """Owner by resource, of what living other homes hold; claims of dead ones are struck out."""
        living: dict[str, bool] = {}
        taken = {}
        for resource, claim in tuple(self.claims.items()):
            if claim.alive == self._alive:
                continue
            if claim.alive not in living:
                living[claim.alive] = _is_locked(claim.alive)
            if claim.boot != self._boot or not living[claim.alive]:
                del self.claims[resource]
                self.changed = True
            else:
                taken[resource] = claim.owner
        return taken

    def hold(self, resources: Iterable[tuple[str, str]]) -> None:
        """Let this ledger hold exactly these (resource, owner) pairs from now on."""
        ours = {name: Claim(alive=self._alive, owner=owner, boot=self._boot) for name, owner in resources}
        others = {name: claim for name, claim in self.claims.items() if claim.alive != self._alive}
        after = {**ours, **others}
        if after != self.claims:
            self.claims = after
            self.changed = True


def _is_locked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # can't see it: never taken for dead
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(path: Path) -> dict[str, Claim]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Claim])
    except FileNotFoundError:
        return {}
    except msgspec.MsgspecError as problem:
        raise Unavailable(f"{path} can't be read ({problem}): remove it when no elearn of yours runs") from problem


def _write(path: Path, claims: dict[str, Claim]) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix="claims.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(claims))
    Path(temporary).rename(path)
