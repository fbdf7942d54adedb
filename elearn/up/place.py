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
                # Sixteen hundred small files: they are flushed in one go, and nobody waits for it.
                "--no-sync",
            ]
        )

    def single(self, data: Path) -> list[str]:
        """The arguments that carry out statements from the standard input, each ended by ``;`` and an empty line."""
        program = [str(self._bin / "postgres"), "--single", "-j", "-F", "-c", "exit_on_error=on"]
        return self.identity.command([*program, "-D", str(data), "template1"])

    def server(self, options: Sequence[str], *, end_with: int | None = None) -> list[str]:
        """The arguments that start the server in the foreground with these options."""
        program = [str(self._bin / "postgres"), "-D", str(self.data), *options]
        return self.identity.command(program, end_with=end_with)


class Settled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record of a place outside the home."""

    identity: Identity
    folder: str


def _record(folder: Path) -> Path:
    return folder / "place.json"


def data_folder(folder: Path) -> Path:
    """Where the data of the server of ``folder`` lies, if there is any."""
    settled = read_struct(_record(folder), Settled)
    return (Path(settled.folder if settled else folder) / "data").resolve()


def place(folder: Path, chosen: Identity, account_root: Path = ACCOUNT_ROOT) -> Place:
    """Settle where the server of ``folder`` lies and make it reachable for ``chosen``.

    What once had to move out to ``account_root``, beside a copy of the program, because only another
    account may run it, stays there.

    Raises:
        HomeError: no room, or no right to write there.
        MissingPartError: the wheel is not installed.
    """
    packages = binaries.postgres_packages()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settled = read_struct(_record(folder), Settled)
        if settled is None and chosen.kind != "account":
            return Place(identity=chosen, packages=packages, folder=folder)
        account_root.mkdir(mode=0o755, parents=True, exist_ok=True)
        copied = _copy_program(packages, account_root)
        if settled is None:
            settled = _move_out(folder, chosen, account_root)
        return Place(identity=settled.identity, packages=copied, folder=Path(settled.folder))
    except OSError as error:
        raise HomeError(f"can't prepare PostgreSQL's folder: {error}") from error


def _move_out(folder: Path, chosen: Identity, account_root: Path) -> Settled:
    outside = account_root / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    shutil.rmtree(outside, ignore_errors=True)  # without a record: half made, or of a home removed since
    outside.mkdir(mode=0o700)
    if (folder / "data").exists():
        shutil.copytree(folder / "data", outside / "data", symlinks=True)
    for path in (outside, *outside.rglob("*")):
        os.chown(path, chosen.uid, chosen.gid, follow_symlinks=False)
    settled = Settled(identity=chosen, folder=str(outside))
    write_atomically(_record(folder), msgspec.json.encode(settled))
    shutil.rmtree(folder / "data", ignore_errors=True)
    return settled


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
