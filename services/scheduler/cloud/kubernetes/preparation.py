"""What a task's pod does before its program starts, told to its init container. Pure."""

from typing import Final

import msgspec

MODULE: Final = "services.scheduler.cloud.kubernetes.prepare"
VARIABLE: Final = "ELEARN_PREPARATION"
WORKSPACE: Final = "/workspace"
CODE: Final = "/elearn/code"
"""Where the Secret is mounted that holds the code, or says where it is: files ``url``, or ``part-00``, ``part-01``…"""
VOLUMES: Final = "/elearn/volumes"
URL_KEY: Final = "url"


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
    """

    code: str = ""
    folders: tuple[Folder, ...] = ()
