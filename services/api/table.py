"""How a route is declared: once, for the router and for OpenAPI alike."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec
from aiohttp import web

from services.api.model import Principal, Reach
from shared.contracts.identity import Scope
from shared.contracts.rpc import AnyVerb

if TYPE_CHECKING:
    from services.api.gateway import Gateway

B = TypeVar("B")
Q = TypeVar("Q", bound=msgspec.Struct)

OPEN: Final = Principal(name="", scope="read")
"""Who asks where nobody has to say who they are."""


class NoQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A route that takes no query parameters."""


class NoBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A route whose body, if there is one, is an empty object."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[B, Q]):
    """One request, checked.

    Attributes:
        path: the path parameters; each can name something.
        project: the project of the path, which exists; empty where the path has none.
        body: the decoded body; None where the route takes none or reads it itself.
    """

    gateway: "Gateway"
    request: web.Request
    principal: Principal
    project: str
    path: Mapping[str, str]
    query: Q
    body: B

    @property
    def name(self) -> str:
        """The ``{name}`` of the path."""
        return self.path["name"]

    @property
    def is_head(self) -> bool:
        """Whether only the headers of a GET are asked for."""
        return self.request.method == "HEAD"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a handler answers, as JSON; no body at all where it is None."""

    body: msgspec.Struct | None = None
    status: int = 200
    location: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call[B, Q]], Awaitable[Answer | web.StreamResponse]]


@dataclass(frozen=True, kw_only=True)
class Route(Generic[B, Q]):
    """One method of one path.

    Attributes:
        path: template; the kinds of its parameters are in :data:`parameters.PATH_PARAMETERS`.
        operation: its id in OpenAPI, unique.
        noun: what it is about: its tag, and the word in "there is no …".
        scope: what a token must have; None: no token is asked for.
        reach: whether it touches one project, none, or all of them.
        body, query: structs to decode strictly.
        raw_query: the handler reads the query itself.
        reply: the struct that it answers; ``gives`` where it is not JSON.
        replies: what it answers with a status, where that is not ``reply``.
        or_else: another struct that it may answer.
        statuses: of success, the usual one first.
        takes: media type of a body that the handler reads as a stream.
        gives: media type of an answer that is not JSON.
        new: path parameters that may name something that is yet to be made.
        problems: statuses of refusal that are special to it.
        verb: what it asks of a room.
        optional: an absent body is an empty object.
        audited: whether it changes something; GET never does.
        reads: request headers it heeds, by name, with what they mean.
        sets: response headers that are special to it.
        example: of the body.
        documented: whether OpenAPI tells of it.
    """

    method: str
    path: str
    operation: str
    noun: str
    summary: str
    handle: Handler[B, Q]
    scope: Scope | None
    reach: Reach = "project"
    body: type[B] | None = None
    query: type[Q] = NoQuery  # type: ignore[assignment]
    raw_query: bool = False
    reply: Any = None
    replies: Mapping[int, Any] = field(default_factory=dict)
    or_else: Any = None
    statuses: tuple[int, ...] = (200,)
    takes: str | None = None
    gives: str | None = None
    new: frozenset[str] = frozenset()
    problems: tuple[int, ...] = ()
    verb: AnyVerb | None = None
    optional: bool = False
    audited: bool = True
    reads: Mapping[str, str] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    example: object = None
    documented: bool = True

    @property
    def changes(self) -> bool:
        """Whether an answered request is a change to keep in the audit log."""
        return self.audited and self.method != "GET"


AnyRoute = Route[Any, Any]
