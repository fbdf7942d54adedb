"""Signed permission to fetch the code of one attempt: made when it is launched, checked when its pods ask."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

_PURPOSE: Final = "elearn code 1"


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """Which archive, and which attempt may fetch it."""

    project: str
    digest: str
    training: str
    attempt: int


class CodeTokens:
    """Makes and checks tokens with a key that all replicas share.

    Args:
        key: reads the key; asked once.
    """

    def __init__(self, key: Callable[[], Awaitable[bytes]]) -> None:
        self._read_key = key
        self._key = b""

    async def sign(self, claim: Claim) -> str:
        """The token of a claim: the same each time.

        Raises:
            Unavailable: the key can't be read.
        """
        message = msgspec.json.encode((_PURPOSE, claim.project, claim.digest, claim.training, claim.attempt))
        return hmac.new(await self._known_key(), message, hashlib.sha256).hexdigest()

    async def is_valid(self, claim: Claim, token: str) -> bool:
        """Whether a token is the claim's.

        Raises:
            Unavailable: the key can't be read.
        """
        # As bytes: a text beyond ASCII can't be compared.
        return hmac.compare_digest((await self.sign(claim)).encode(), token.encode(errors="replace"))

    async def _known_key(self) -> bytes:
        self._key = self._key or await self._read_key()
        return self._key
