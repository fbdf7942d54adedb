"""Where elearn is and who is asking: arguments, then the environment, then a login, then `elearn up`."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from shared.contracts.common import DEFAULT_PROJECT, NAME_PATTERN
from shared.errors import ElearnError, Invalid, Unauthenticated

LOGIN_FILE: Final = "login.json"
UP_FILE: Final = "state.json"
_LOOPBACK: Final = re.compile(r"localhost|::1|127(\.\d{1,3}){3}")
TOKEN_FILE: Final = "token"  # noqa: S105 - the name of a file


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go.

    Attributes:
        url: without a slash at its end.
        source: what named the url, in words, for messages.
    """

    url: str
    token: str
    project: str = DEFAULT_PROJECT
    source: str = ""

    @property
    def loopback(self) -> bool:
        """The address is this machine's own."""
        return _LOOPBACK.fullmatch(urlsplit(self.url).hostname or "") is not None

    def __repr__(self) -> str:
        return f"Connection(url={self.url!r}, project={self.project!r})"  # the token is nobody's business


class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``elearn login`` keeps."""

    url: str
    token: str


class UpPorts(msgspec.Struct, frozen=True, kw_only=True):
    """The ports of `elearn up`, as far as a client needs them."""

    api: int


class UpState(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `elearn up`'s state file that a client needs.

    Attributes:
        supervisor: None once it has been taken down; its ports stay known.
    """

    ports: UpPorts
    supervisor: dict[str, object] | None = None


class NotConnected(ElearnError):
    """Nothing says where elearn is."""

    status = 503
    title = "Not connected"
    type = "not-connected"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """``ELEARN_HOME``, by default ``~/.elearn``."""
    named = environ.get("ELEARN_HOME")
    return Path(named).expanduser() if named else Path("~/.elearn").expanduser()


def checked_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        Invalid: it is not one that a client can speak to.
    """
    parts = urlsplit(url)
    try:
        legal = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        legal = False
    if not legal:
        raise Invalid.field("url", f"{url!r} is not an http:// or https:// address")
    if parts.query or parts.fragment or parts.username is not None:
        raise Invalid.field("url", f"{parts.scheme}://{parts.hostname}… must be an address alone")
    return url.rstrip("/")


def checked_name(name: str, field: str = "name") -> str:
    """The name itself, so that it can't become another path of the API.

    Raises:
        Invalid: it is not a legal name.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise Invalid.field(field, f"{name!r} is not a name: lower-case letters, digits and dashes, at most 40 of them")
    return name


def connect(
    url: str | None = None,
    token: str | None = None,
    project: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Connection:
    """Settle where requests go.

    Raises:
        Invalid: an address or project that can't be one.
        NotConnected: nothing says where elearn is.
        Unauthenticated: there is an address but no token for it.
    """
    project = checked_name(project or environ.get("ELEARN_PROJECT") or DEFAULT_PROJECT, "project")
    token = token or environ.get("ELEARN_TOKEN") or None
    folder = home(environ)
    source = "the url given"
    if not url and environ.get("ELEARN_URL"):
        url, source = environ["ELEARN_URL"], "ELEARN_URL"
    known = read_login(folder) if not url or not token else None
    if known is not None and (not url or checked_url(url) == known.url):
        url, token = known.url, token or known.token
        source = str(folder / LOGIN_FILE)
    if not url or not token:
        running = _running_at(folder)
        if not url:
            if running is None:
                raise NotConnected(
                    f"elearn is not running at {folder}: start it with `elearn up`, or name another with "
                    "`elearn login URL` or ELEARN_URL"
                )
            url, source = running, str(folder / UP_FILE)
        if not token and running is not None and checked_url(url) == checked_url(running):
            token = _read_token(folder)
    if not token:
        raise Unauthenticated(f"no token for {url}: set ELEARN_TOKEN, or `elearn login {url}`")
    return Connection(url=checked_url(url), token=token, project=project, source=source)


def read_login(folder: Path) -> Login | None:
    """What ``elearn login`` kept in this home, or None."""
    path = folder / LOGIN_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Login)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise Invalid(f"can't read {path}: {error}; `elearn login URL` writes it anew") from error


def write_login(folder: Path, login: Login) -> Path:
    """Keep a login so that only its owner can read it; the old one stays until the new one is whole.

    Raises:
        Invalid: the home can't be written.
    """
    path = folder / LOGIN_FILE
    unfinished = path.with_name(f".{LOGIN_FILE}.{os.getpid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(login))
        unfinished.replace(path)
    except OSError as error:
        raise Invalid(f"can't write {path}: {error.strerror or error}") from error
    return path


def forget_login(folder: Path) -> bool:
    """Remove what ``elearn login`` kept; False where there was nothing."""
    path = folder / LOGIN_FILE
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Invalid(f"can't remove {path}: {error.strerror or error}") from error
    return True


def _running_at(folder: Path) -> str | None:
    path = folder / UP_FILE
    try:
        state = msgspec.json.decode(path.read_bytes(), type=UpState)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise NotConnected(f"can't read {path}: {error}") from error
    return None if state.supervisor is None else f"http://127.0.0.1:{state.ports.api}"


def _read_token(folder: Path) -> str | None:
    path = folder / TOKEN_FILE
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unauthenticated(f"can't read the token in {path}: {error.strerror or error}") from error
