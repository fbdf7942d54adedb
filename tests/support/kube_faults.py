"""What goes wrong with requests to an emulated API server, as a test scripts it."""

import asyncio
import re
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

from tests.support.kube_errors import ApiError

What = Literal["status", "drop", "drop answer", "hang", "page"]
"""An error as a status, a cut before or after the deed, silence, a proxy's page."""


@dataclass(eq=False)
class Fault:
    """Something that happens to requests instead of, or besides, their answer.

    Attributes:
        times: to how many requests it still happens.
        method: of those requests; None: any.
        path: found in theirs.
        watch: whether they are watches; None: they may be.
        error: the status that they are answered with.
        retry_after: told with it.
    """

    what: What
    times: int
    method: str | None
    path: re.Pattern[str]
    watch: bool | None
    error: ApiError | None
    retry_after: str | None

    def meets(self, request: web.Request) -> bool:
        return (
            self.times > 0
            and self.method in (None, request.method)
            and self.watch in (None, "watch" in request.query)
            and self.path.search(request.path) is not None
        )

    async def strike(self, request: web.Request) -> web.StreamResponse | None:
        """What it answers before anything is done; None: that is left to be done.

        Raises:
            ApiError: it is one.
        """
        self.times -= 1
        if self.what == "hang":
            await asyncio.sleep(3600)
        if self.what == "drop":
            return abort(request)
        if self.what == "page":
            return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")
        if self.error is not None:
            raise self.error
        return None


def abort(request: web.Request) -> web.StreamResponse:
    """Cut the connection; what is answered goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
