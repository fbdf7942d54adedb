"""Errors of the file system in words that a user can act on."""

import contextlib
import errno
from collections.abc import Iterator

from services.datastore.errors import NoSuchFile
from shared.beneath import NotAFileError, OutsideError
from shared.errors import Conflict, Forbidden, Invalid, StorageFull, Unavailable

_CONFLICTS = {
    errno.ENOTDIR: "it, or a part of its path, is not a folder",
    errno.EISDIR: "it is a folder",
    errno.EEXIST: "it exists already",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.EXDEV: "it lies on a file system of its own within the datastore; write to that one directly",
    errno.EBUSY: "it is in use by the system",
}
_FORBIDDEN = {
    errno.EACCES: "elearn's user has no right to it",
    errno.EPERM: "the file system does not allow it",
    errno.EROFS: "the file system is read-only",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Raise what went wrong with ``path`` as one of our errors."""
    shown = path or "the top of the datastore"
    try:
        yield
    except OutsideError as error:
        raise Invalid.field("path", str(error)) from error
    except NotAFileError as error:
        raise Conflict(f"{shown}: {error}") from error
    except FileNotFoundError as error:
        raise NoSuchFile(f"{shown}: there is no such file or folder") from error
    except OSError as error:
        code = error.errno or 0
        if code in _FULL:
            raise StorageFull(f"{shown}: the disk is full; free some space and try again") from error
        if code in _CONFLICTS:
            raise Conflict(f"{shown}: {_CONFLICTS[code]}") from error
        if code in _FORBIDDEN:
            raise Forbidden(f"{shown}: {_FORBIDDEN[code]}") from error
        if code in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise Invalid.field("path", f"the file system can't take it: {error.strerror}") from error
        raise Unavailable(f"{shown}: the storage answers with an error: {error.strerror}") from error
