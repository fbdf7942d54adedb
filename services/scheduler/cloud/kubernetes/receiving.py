"""How code arrives in a task's init container: from a code server, or in the parts of mounted Secrets. Blocks."""

import contextlib
import gzip
import hashlib
import http.client
import random
import ssl
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final
from urllib.parse import SplitResult, urlsplit

from services.scheduler.cloud.kubernetes.preparation import PART_KEY, URL_KEY
from shared.errors import Forbidden, Invalid, NotFound, TooLarge, Unavailable
from shared.unpacking import CODE

_BLOCK: Final = 1 << 18
_SILENCE: Final = 20.0
"""Seconds without a byte after which a connection is given up."""
_TRANSFER: Final = 600.0
"""Seconds that one answer may take as a whole."""
_WORDS: Final = 200
_PATIENCE: Final = 240.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 15.0

Say = Callable[[str], None]


def receive(
    source: Path,
    digest: str,
    scratch: Path,
    *,
    say: Say,
    patience: float = _PATIENCE,
    pause: float = _FIRST_PAUSE,
) -> Path:
    """The archive as a file in ``scratch``, its digest checked.

    Args:
        source: the folder where the Secrets are mounted.
        say: told why it takes longer.
        patience: seconds for which a code server that is away is asked again.
        pause: seconds before it is asked the second time.

    Raises:
        Invalid: what came is not what was uploaded.
        Forbidden, NotFound: the code server does not hand it out.
        Unavailable: it is away, or the Secrets are not whole.
        TooLarge: it is more than any archive may be.
    """
    archive = scratch / "archive"
    with archive.open("w+b") as file:
        if (source / URL_KEY).is_file():
            url = (source / URL_KEY).read_text(encoding="utf-8").strip()
            _download(url, file, say=say, patience=patience, pause=pause)
        else:
            _join(source, file)
    if _digest(archive) == digest:
        return archive
    plain = scratch / "plain"
    # A plain archive was compressed on its way; what was compressed when it was uploaded has matched already.
    if _expand(archive, plain) and _digest(plain) == digest:
        return plain
    raise Invalid("the code that came is not the code that was uploaded: its digest is another")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _expand(archive: Path, plain: Path) -> bool:
    """Whether it was gzip, and what it holds is in ``plain`` now."""
    try:
        with gzip.open(archive) as zipped, plain.open("wb") as file:
            _copy(zipped.read, file)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return False
    return True


def _copy(read: Callable[[int], bytes], file: IO[bytes], *, until: float = float("inf")) -> int:
    size = 0
    while block := read(_BLOCK):
        size += len(block)
        if size > CODE.compressed:
            raise TooLarge(f"the archive of code is over {CODE.compressed:,} bytes")
        if time.monotonic() > until:
            raise _AwayError(f"{_TRANSFER:g} seconds were not enough")
        file.write(block)
    return size


# -- from Secrets


def _join(source: Path, file: IO[bytes]) -> None:
    number = 0
    while (part := source / PART_KEY.format(number)).is_file():
        with part.open("rb") as piece:
            _copy(piece.read, file)
        number += 1
    if not number:
        raise Unavailable("the Secret with the code is empty")


# -- from a code server


class _AwayError(Exception):
    """Another try makes sense.

    Attributes:
        after: seconds that the server asks to wait.
    """

    def __init__(self, words: str, after: float = 0.0) -> None:
        super().__init__(words)
        self.after = after


def _download(url: str, file: IO[bytes], *, say: Say, patience: float, pause: float) -> None:
    place = urlsplit(url)
    where = f"{place.scheme}://{place.netloc.rpartition('@')[2]}"  # what follows is secret
    end = time.monotonic() + patience
    while True:
        file.seek(0)
        file.truncate()
        try:
            _get(place, where, file)
            return
        except _AwayError as away:
            words = f"the code can't be fetched from {where}: {away}"
            wait = min(_LONGEST_PAUSE, max(pause, away.after)) * random.uniform(0.7, 1.3)  # noqa: S311 - spreads pods
            if time.monotonic() + wait > end:
                raise Unavailable(words) from away
            say(f"{words}; asking again")
            time.sleep(wait)
            pause *= 2


def _get(place: SplitResult, where: str, file: IO[bytes]) -> None:
    connect = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = connect(place.hostname or "", place.port, timeout=_SILENCE)
    try:
        with _network(where):
            connection.request("GET", f"{place.path}?{place.query}", headers={"Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise _refusal(answer, where)
        promised = answer.length
        size = _copy(lambda most: _read(answer, most, where), file, until=time.monotonic() + _TRANSFER)
        if promised is not None and size != promised:
            raise _AwayError(f"the connection broke after {size:,} of {promised:,} bytes")
    finally:
        connection.close()


def _read(answer: http.client.HTTPResponse, most: int, where: str) -> bytes:
    with _network(where):
        return answer.read(most)


@contextlib.contextmanager
def _network(where: str) -> Iterator[None]:
    """Say of errors of the network, and of no others, that another try makes sense."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise Forbidden(f"the certificate of {where} is not trusted: {error.verify_message}") from error
    except OSError as error:
        raise _AwayError(error.strerror or str(error) or type(error).__name__) from error
    except http.client.HTTPException as error:
        raise _AwayError(f"it does not speak HTTP: {error!r}") from error


def _refusal(answer: http.client.HTTPResponse, where: str) -> Exception:
    """What an answer that is not the archive comes to."""
    said = " ".join(answer.read(_BLOCK).decode(errors="replace").split())[:_WORDS]
    words = f"{answer.status} {answer.reason}" + (f", {said}" if said else "")
    if answer.status >= 500 or answer.status in (408, 425, 429):
        after = answer.headers.get("Retry-After", "")
        return _AwayError(words, float(after) if after.isdecimal() else 0.0)
    if 300 <= answer.status < 400:
        return Forbidden(
            f"{where} sends us elsewhere ({words}): ELEARN_KUBERNETES_CODE_URL must name the server itself"
        )
    if answer.status == http.client.NOT_FOUND:
        return NotFound(f"the code is not there any more: {where} answers {words}")
    return Forbidden(f"the code is not handed out: {where} answers {words}")
