"""Paths that belong to elearn's API and that this release does not serve: they say so."""

from services.api.errors import NotOffered
from services.api.table import Answer, Call, Handler, NoQuery, Route
from shared.contracts.identity import Scope

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def _refusing(words: str) -> Handler[None, NoQuery]:
    async def refuse(_: Call[None, NoQuery]) -> Answer:
        raise NotOffered(words)

    return refuse


def _routes(path: str, words: str, scope: Scope | None = "read") -> list[Route[None, NoQuery]]:
    return [
        Route(
            method=method,
            path=path,
            operation=f"{method.lower()} {path}",
            noun="path",
            summary=words,
            handle=_refusing(words),
            scope=scope,
            raw_query=True,
            audited=False,
            documented=False,
        )
        for method in _METHODS
    ]


_TRIGGERS = (
    "triggers are not part of this release; start trainings with POST …/trainings, from a schedule of your own "
    "or on an event of /v1/projects/{project}/events"
)
_QUOTA = "quotas are not part of this release; what a project uses stands in …/usage"
_CONSOLE = "the web console is not part of this release; use the elearn command, or see /openapi.json"

ROUTES = (
    *_routes("/v1/projects/{project}/triggers", _TRIGGERS),
    *_routes("/v1/projects/{project}/triggers/{name}", _TRIGGERS),
    *_routes("/v1/projects/{project}/triggers/{name}/runs", _TRIGGERS),
    *_routes("/v1/projects/{project}/quota", _QUOTA),
    Route(
        method="GET",
        path="/",
        operation="console",
        noun="path",
        summary=_CONSOLE,
        handle=_refusing(_CONSOLE),
        scope=None,
        raw_query=True,
        documented=False,
    ),
)
