"""Where PostgreSQL's program and data lie so that the identity it runs under can reach both."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from elearn.up import binaries
from elearn.up.errors import HomeError
from elearn.up.files import read_struct, write_atomically
from elearn.up.identity import Identity

SUPERUSER = "postgres"
ACCOUNT_ROOT = Path("/var/lib/elearn")
"""Where data lies that an account other than root's must reach; everybody may traverse it."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server's program and data lie, and who runs it."""

    identity: Identity
    packages: Path
    folder: Path
    """Holds the data directory; owned by the identity."""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def _bin(self) -> Path:
        return binaries.postgres_folder(self.packages) / "bin"

    def initdb(self, data: Path, password_file: Path) -> list[str]:
        return self.identity.command(
            [
                str(self._bin / "initdb"),
                f"--pgdata={data}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--wal-segsize=4",
                "--no-instructions",
                # Nothing of worth is in there yet: a crash before the rename throws it away.
                "--no-sync",
            ]
        )

    def server(self, options: Sequence[str], *, end_with: int | None = None) -> list[str]:
        """The arguments that start the server in the foreground with these options."""
        program = [str(self._bin / "postgres"), "-D", str(self.data), *options]
        return self.identity.command(program, end_with=end_with)


def place(folder: Path, chosen: Identity, account_root: Path = ACCOUNT_ROOT) -> Place:
    """Settle where the server of ``folder`` lies and make it reachable for ``chosen``.

    Data begun under an account of its own stays there. Data that lies in ``folder`` while only
    another account may run it is moved to ``account_root``, beside a copy of the program.

    Raises:
        HomeError: no room, or no right to write there.
        MissingPartError: the wheel is not installed.
    """
    packages = binaries.postgres_packages()
    record = folder / "identity.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = read_struct(record, Identity)
        if known is not None and known.kind == "account" and os.geteuid() == 0:
            chosen = known
        if chosen.kind != "account":
            return Place(identity=chosen, packages=packages, folder=folder)
        outside = account_root / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
        account_root.mkdir(mode=0o755, parents=True, exist_ok=True)
        copied = _copy_program(packages, account_root)
        outside.mkdir(mode=0o700, exist_ok=True)
        if (folder / "data").exists() and not (outside / "data").exists():
            moving = outside / "data.moving"
            shutil.rmtree(moving, ignore_errors=True)
            shutil.copytree(folder / "data", moving, symlinks=True)
            _give(moving, chosen)
            moving.rename(outside / "data")
            shutil.rmtree(folder / "data")
        os.chown(outside, chosen.uid, chosen.gid)
        write_atomically(record, msgspec.json.encode(chosen))
        return Place(identity=chosen, packages=copied, folder=outside)
    except OSError as error:
        raise HomeError(f"can't prepare PostgreSQL's folder: {error}") from error


def _copy_program(packages: Path, account_root: Path) -> Path:
    """Copy the program to where every account may read it, once per build of it."""
    binary = binaries.postgres_folder(packages) / "bin" / "postgres"
    stat = binary.stat()
    target = account_root / f"postgres-{stat.st_size:x}-{int(stat.st_mtime):x}"
    if target.is_dir():
        return target
    making = account_root / f"{target.name}.{os.getpid()}"
    for part in binaries.postgres_parts():
        source, destination = packages / part, making / part
        destination.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, destination, symlinks=True)
        else:
            shutil.copy2(source, destination)
    for path in (making, *making.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    try:
        making.rename(target)
    except OSError:
        shutil.rmtree(making)
        if not target.is_dir():  # otherwise another `elearn up` was quicker: its copy is as good
            raise
    return target


def _give(folder: Path, to: Identity) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, to.uid, to.gid, follow_symlinks=False)
