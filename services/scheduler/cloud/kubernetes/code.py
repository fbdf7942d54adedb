"""How code gets to the pods of an attempt: in Secrets, or by a signed URL of the code server in one.

Secrets need nothing but the API, but each holds a megabyte at most, and all of them lie in the cluster's own store: so
there is a limit, beyond which pods have to fetch the archive from this scheduler.
"""

import asyncio
import base64
import contextlib
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from services.scheduler.cloud.kubernetes.code_tokens import Claim
from services.scheduler.cloud.kubernetes.options import TrainingOptions
from services.scheduler.cloud.kubernetes.preparation import PART_KEY, URL_KEY
from services.scheduler.cloud.port import Launch
from services.scheduler.errors import CannotLaunch, NoSuchCode
from shared.contracts.problem import FieldError
from shared.contracts.training import TrainingSpec
from shared.errors import Unsupported

Document = dict[str, object]
Sign = Callable[[Claim], Awaitable[str]]

SECRET_BYTES: Final = 700 * 1024
"""Of code in one Secret. Kubernetes takes a megabyte, its store one and a half in a request."""
MOST_BYTES: Final = 6 * 2**20
"""Of code in all Secrets of an attempt."""
_GZIP: Final = b"\x1f\x8b"
_GZIP_FORMAT: Final = 31
"""For zlib: the largest window, in gzip's frame, which names no time: the same bytes make the same archive."""


class CodeSource(Protocol):
    """Where archives are kept."""

    async def size(self, project: str, digest: str) -> int:
        """Bytes of an archive.

        Raises:
            NoSuchCode: there is none.
        """

    def parts(self, project: str, digest: str) -> AsyncGenerator[bytes, None]:
        """Its bytes.

        Raises:
            NoSuchCode: there is none.
        """


class CodeDelivery:
    """Says what the Secrets of an attempt hold.

    Args:
        source: where archives are kept.
        sign: makes the token by which the code server lets pods fetch an archive.

    Raises:
        Unsupported: the code server's URL is none.
    """

    def __init__(self, options: TrainingOptions, source: CodeSource, sign: Sign) -> None:
        self._url = options.kubernetes_code_url.rstrip("/")
        if self._url and not _is_url(self._url):
            raise Unsupported(
                f"ELEARN_KUBERNETES_CODE_URL: {self._url!r} does not look like http://elearn-scheduler.elearn:8083"
            )
        self._source = source
        self._sign = sign

    async def examine(self, project: str, spec: TrainingSpec) -> list[FieldError]:
        """What of a spec's code could not be delivered, as far as its size tells.

        How small an archive gets that was uploaded uncompressed is seen only when it is launched. An archive that
        does not exist is not for us to find.
        """
        if spec.code is None or self._url:
            return []
        try:
            size = await self._source.size(project, spec.code)
            if size <= MOST_BYTES or not await self._is_compressed(project, spec.code):
                return []
        except NoSuchCode:
            return []
        return [FieldError(field="code", message=_too_large(size))]

    async def contents(self, launch: Launch) -> tuple[dict[str, bytes], ...]:
        """What the Secrets of an attempt hold; the same for every try of it.

        Raises:
            CannotLaunch: the archive is too large for Secrets, or there is none any more.
            Unavailable: the database is away.
        """
        if launch.spec.code is None:
            return ()
        if self._url:
            return (await self._signed(launch, launch.spec.code),)
        try:
            data = await self._compressed(launch.project, launch.spec.code)
        except NoSuchCode as error:
            raise CannotLaunch(error.detail) from error
        starts = range(0, len(data), SECRET_BYTES)
        return tuple(
            {PART_KEY.format(number): data[start : start + SECRET_BYTES]} for number, start in enumerate(starts)
        )

    async def _signed(self, launch: Launch, digest: str) -> dict[str, bytes]:
        claim = Claim(project=launch.project, digest=digest, training=launch.name, attempt=launch.attempt)
        token = await self._sign(claim)
        query = urlencode({"training": claim.training, "attempt": claim.attempt, "token": token})
        return {URL_KEY: f"{self._url}/code/{quote(claim.project)}/{quote(digest)}?{query}".encode()}

    async def _is_compressed(self, project: str, digest: str) -> bool:
        async with contextlib.aclosing(self._source.parts(project, digest)) as parts:
            return (await anext(parts, b"")).startswith(_GZIP)

    async def _compressed(self, project: str, digest: str) -> bytes:
        """The archive as gzip, which most are already."""
        data = bytearray()
        squeeze: zlib._Compress | None = None
        if not await self._is_compressed(project, digest):
            squeeze = zlib.compressobj(level=6, wbits=_GZIP_FORMAT)
        async with contextlib.aclosing(self._source.parts(project, digest)) as parts:
            async for part in parts:
                data += part if squeeze is None else await asyncio.to_thread(squeeze.compress, part)
                if len(data) > MOST_BYTES:
                    break
        if squeeze is not None:
            data += squeeze.flush()
        if len(data) > MOST_BYTES:
            raise CannotLaunch(f"code: {_too_large(await self._source.size(project, digest))}")
        return bytes(data)


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and not url.query
    except ValueError:
        return False


def _too_large(size: int) -> str:
    return (
        f"the archive has {size:,} bytes, more than Secrets of this cluster may hold ({MOST_BYTES:,}): name what is "
        f"not needed in .elearnignore, put data into a datastore, or have the operator set ELEARN_KUBERNETES_CODE_URL"
    )


# -- manifests; pure


class CodeSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A Secret to be made."""

    name: str
    manifest: Document


def code_secrets(
    prefix: str,
    contents: Sequence[Mapping[str, bytes]],
    *,
    namespace: str,
    labels: Mapping[str, str],
    owner: Document,
) -> tuple[CodeSecret, ...]:
    """The Secrets of an attempt, in the order of their parts.

    Args:
        prefix: what their names begin with.
        owner: a reference to what they go with.
    """
    return tuple(
        CodeSecret(
            name=f"{prefix}-{number}",
            manifest={
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": f"{prefix}-{number}",
                    "namespace": namespace,
                    "labels": dict(labels),
                    "ownerReferences": [owner],
                },
                "type": "Opaque",
                "immutable": True,
                "data": {key: base64.b64encode(value).decode() for key, value in content.items()},
            },
        )
        for number, content in enumerate(contents)
    )
