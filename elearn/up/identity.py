"""Under which identity PostgreSQL runs, given that it refuses to be root."""

import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from elearn.up import launch
from elearn.up.errors import AccountError

_LAUNCH = str(Path(launch.__file__).resolve())


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the machine's user table."""

    name: str
    uid: int
    gid: int


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a program is started so that it is not root.

    ``self``: as the calling user. ``namespace``: as the calling user, who is called ``uid`` inside.
    ``account``: as the account ``uid``, which must be able to reach the program and its data.
    """

    kind: Literal["self", "namespace", "account"]
    uid: int
    gid: int

    def command(self, program: Sequence[str], *, end_with: int | None = None) -> list[str]:
        """The arguments that start ``program`` under this identity.

        Args:
            end_with: the parent's process id, to have the program end when the parent dies.
        """
        options: list[str] = []
        if self.kind == "namespace":
            options += ["--inside", str(self.uid), str(self.gid)]
        elif self.kind == "account":
            options += ["--become", str(self.uid), str(self.gid)]
        if end_with is not None:
            options += ["--end-with", str(end_with)]
        if not options:
            return list(program)
        return [sys.executable, "-I", "-S", _LAUNCH, *options, "--", *program]


def accounts() -> list[Account]:
    """The machine's user table, `nobody` first: it owns nothing that a server should not share."""
    table = [Account(name=each.pw_name, uid=each.pw_uid, gid=each.pw_gid) for each in pwd.getpwall()]
    return sorted(table, key=lambda each: (each.name != "nobody", each.uid))


def namespace_allowed(identity: Identity) -> bool:
    """Try whether the kernel lets this process enter such a user namespace (containers often refuse)."""
    done = subprocess.run(
        identity.command(["/bin/sh", "-c", 'test "$(id -u)" = "$0"', str(identity.uid)]),
        check=False,
        capture_output=True,
        timeout=30,
    )
    return done.returncode == 0


def choose(
    uid: int,
    gid: int,
    table: Sequence[Account],
    allowed: Callable[[Identity], bool] = namespace_allowed,
) -> Identity:
    """The identity for the user ``uid``.

    An ordinary user known to the machine is itself. Root, and a user id without a name (which initdb
    refuses as well), takes a user namespace; where that is refused, root takes another account.

    Raises:
        AccountError: none is left.
    """
    if uid != 0 and any(each.uid == uid for each in table):
        return Identity(kind="self", uid=uid, gid=gid)
    others = [each for each in table if each.uid != 0]
    if not others:
        raise AccountError("PostgreSQL refuses to run as root and this machine has no other account: add one")
    first = others[0]
    inside = Identity(kind="namespace", uid=first.uid, gid=first.gid)
    if allowed(inside):
        return inside
    if uid != 0:
        raise AccountError(f"PostgreSQL needs a named account and user id {uid} has none here: add it to /etc/passwd")
    return Identity(kind="account", uid=first.uid, gid=first.gid)


def current(allowed: Callable[[Identity], bool] = namespace_allowed) -> Identity:
    """The identity for the calling user."""
    return choose(os.geteuid(), os.getegid(), accounts(), allowed)
