"""The layout of ELEARN_HOME, and what is generated there once."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from elearn.up.errors import AlreadyRunningError, HomeError
from elearn.up.files import read_struct, write_atomically
from shared.local.identity import ProcessIdentity, identify

DEFAULT_PORT = 8470
_FIRST_BYTES, _LATER_BYTES = 256 * 2**20, 32 * 2**20
"""Room that must be left when a home is made, and whenever it is brought up again."""
_LOCK_PAUSES = (0.001, 0.005, 0.02, 0.05)
_PASSWORD = re.compile(r"[A-Za-z0-9_-]{16,}")


class Secrets(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Passwords by user name; whoever can read them owns the platform's data.

    Attributes:
        installation: tells this home's objects in a cluster from those of other homes. It is no secret, but just as
            lasting.
    """

    nats: dict[str, str] = {}
    postgres: dict[str, str] = {}
    installation: str = ""


class Home:
    """The folder in which one embedded platform lives."""

    def __init__(self, root: Path) -> None:
        try:
            self.root = root.expanduser().resolve()  # one home, one name, whichever way it was reached
        except RuntimeError as error:
            raise HomeError(f"can't tell where {root} is ({error}): set HOME, or name a home with --home") from error
        self.token = self.root / "token"
        self.state = self.root / "state.json"
        self.secrets = self.root / "secrets.json"
        self.lock = self.root / "elearn.lock"
        self.logs = self.root / "logs"
        self.models = self.root / "models"
        self.nats = self.root / "nats"
        self.nats_url = self.nats / "url"
        self.postgres = self.root / "postgres"

    @classmethod
    def find(cls, given: Path | None = None) -> "Home":
        """The home that is meant: the one given, else $ELEARN_HOME, else ~/.elearn."""
        if given is not None:
            return cls(given)
        return cls(Path(os.environ.get("ELEARN_HOME") or "~/.elearn"))

    def log(self, name: str) -> Path:
        """The log of a process."""
        return self.logs / f"{name}.log"

    def prepare(self) -> None:
        """Make the folders; readable by their owner alone.

        Raises:
            HomeError: it can't be written, has no room, or belongs to somebody else.
        """
        if any(character in str(self.root) for character in '":\n'):  # configuration files, lists of paths
            raise HomeError(f"a home's path can't hold quotes, colons or line ends: {str(self.root)!r}")
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.root.stat().st_uid
            if owner != os.geteuid():
                raise HomeError(
                    f"{self.root} belongs to user {owner}, you are user {os.geteuid()}: "
                    "run elearn as its owner, or choose another home with --home"
                )
            self.root.chmod(0o700)
            for folder in (self.logs, self.models, self.nats, self.postgres):
                folder.mkdir(mode=0o700, exist_ok=True)
            free = self._free()
            needed = _LATER_BYTES if self.secrets.exists() else _FIRST_BYTES
            if free < needed:
                raise HomeError(
                    f"only {free // 2**20} MiB are free at {self.root}, {needed // 2**20} are needed: "
                    "make room, or choose another home with --home"
                )
        except OSError as error:
            raise unusable(self.root, error) from error

    def _free(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def has_room(self) -> bool:
        """Whether there is as much room as a start needs."""
        try:
            return self._free() >= _LATER_BYTES
        except OSError:
            return False

    @contextlib.contextmanager
    def locked(self, *, supervise: bool = False) -> Iterator[None]:
        """Own the home for the duration; the kernel gives it back whatever happens to this process.

        Args:
            supervise: whether it is for long, and who wants the home should ask this process to end.

        Raises:
            AlreadyRunningError: another process owns it.
        """
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _locks(descriptor):
                raise AlreadyRunningError(
                    f"elearn is already up in {self.root}: see `elearn status`, or end it with `elearn down`"
                )
            os.truncate(descriptor, 0)
            if supervise:
                os.pwrite(descriptor, msgspec.json.encode(identify(os.getpid())), 0)
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether a process owns this home now."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def owner(self) -> ProcessIdentity | None:
        """The supervisor that owns this home now, if any does."""
        if not self.is_locked():
            return None
        try:
            return msgspec.json.decode(self.lock.read_bytes(), type=ProcessIdentity)
        except (FileNotFoundError, msgspec.DecodeError):
            return None  # it has only just begun or ended, or clears up and will end by itself

    def ensure_token(self) -> None:
        """Make the API's token unless there is one."""
        if not self.token.exists():
            write_atomically(self.token, f"{secrets.token_urlsafe(32)}\n".encode())
        self.token.chmod(0o600)

    def ensure_secrets(self, nats: Sequence[str], postgres: Sequence[str]) -> Secrets:
        """The passwords of these users; those that are missing are made and kept.

        Raises:
            HomeError: the file is damaged.
        """
        known = read_struct(self.secrets, Secrets) or Secrets()
        wanted = Secrets(
            nats={**_passwords(nats), **known.nats},
            postgres={**_passwords(postgres), **known.postgres},
            installation=known.installation or f"up-{secrets.token_hex(4)}",
        )
        for password in (*wanted.nats.values(), *wanted.postgres.values()):
            if not _PASSWORD.fullmatch(password):
                raise HomeError(f"{self.secrets} holds an unusable password: use 16 or more of A-Z a-z 0-9 _ -")
        if wanted != known:
            write_atomically(self.secrets, msgspec.json.format(msgspec.json.encode(wanted)) + b"\n")
        return wanted


def _locks(descriptor: int) -> bool:
    """Take a home's lock, or see that another keeps it: who only looks at it holds it for a moment too."""
    for pause in _LOCK_PAUSES:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        else:
            return True
    return False


def _passwords(names: Sequence[str]) -> dict[str, str]:
    return {name: secrets.token_urlsafe(24) for name in names}


def unusable(path: Path, error: OSError) -> HomeError:
    """What an operating system's error about a home means, in words."""
    where = Path(error.filename) if isinstance(error.filename, str) else path
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return HomeError(f"no space left at {where}: make room, or choose another home with --home")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return HomeError(f"no right to use {where} ({error.strerror}): choose another home with --home")
        case errno.EEXIST | errno.ENOTDIR:
            return HomeError(f"{where} is not a folder: choose another home with --home")
        case _:
            return HomeError(f"can't use {where} as a home: {error.strerror or error}")
