"""What a task's init container is told to do before the task starts. Pure, and light to import.

Folders of datastores are made by the init container and not by the kubelet, which would make them as root; then code
is fetched and unpacked as the working directory, and the places in it where directories are mounted are made.
"""

from typing import Final

import msgspec

MODULE: Final = "services.scheduler.cloud.kubernetes.prepare"
VARIABLE: Final = "ELEARN_PREPARATION"
WORKSPACE: Final = "/workspace"
CODE: Final = "/elearn/code"
"""Where the Secret is mounted that holds the code, or says where it is: files ``url``, or ``part-00``, ``part-01``…"""
VOLUMES: Final = "/elearn/volumes"
URL_KEY: Final = "url"
PART_KEY: Final = "part-{:02}"

REFUSED: Final = 1
"""Exit code: the same would fail again; the termination message says what to change."""
AWAY: Final = 75
"""Exit code: something needed was away for long, or a disk was full; another try may succeed."""


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of a volume that is about to be mounted.

    Attributes:
        volume: where the init container sees the volume's top.
        path: below it; "" for the top itself.
        make: it is made where it is missing; else it has to be there.
    """

    datastore: str
    volume: str
    path: str
    make: bool


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """All that has to be done.

    Attributes:
        code: digest (``sha256:…``) of the archive that becomes the working directory; "" for none.
        points: paths below the working directory where something is about to be mounted. The container runtime
            makes what is missing of them too, but as root, so that a task could write nothing beside its mounts.
        peers: names that the task will look up; see :mod:`services.scheduler.cloud.kubernetes.peers`.
    """

    code: str = ""
    folders: tuple[Folder, ...] = ()
    points: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
