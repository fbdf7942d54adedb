"""Query parameters of lists: a part of them, by state, by label."""

from typing import Annotated

import msgspec

from services.api.parameters import labels_of
from shared.contracts.common import ListRequest
from shared.contracts.datastore import DatastoreState
from shared.contracts.model import VersionState
from shared.contracts.serving import ServingState
from shared.contracts.training import TrainingState

Limit = Annotated[int, msgspec.Meta(ge=1, le=500)]


class Paging(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a list.

    Attributes:
        limit: how many items at the most.
        cursor: ``next`` of the page before.
    """

    limit: Limit = 100
    cursor: str | None = None


class Labelled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a list.

    Attributes:
        limit: how many items at the most.
        cursor: ``next`` of the page before.
        label: ``key=value``; only items that carry it. May be given several times.
    """

    limit: Limit = 100
    cursor: str | None = None
    label: tuple[str, ...] = ()


class Trainings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the list of trainings.

    Attributes:
        limit: how many items at the most.
        cursor: ``next`` of the page before.
        state: only items in this state.
        label: ``key=value``; only items that carry it. May be given several times.
    """

    limit: Limit = 100
    cursor: str | None = None
    state: TrainingState | None = None
    label: tuple[str, ...] = ()


class Datastores(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the list of datastores.

    Attributes:
        limit: how many items at the most.
        cursor: ``next`` of the page before.
        state: only items in this state.
        label: ``key=value``; only items that carry it. May be given several times.
    """

    limit: Limit = 100
    cursor: str | None = None
    state: DatastoreState | None = None
    label: tuple[str, ...] = ()


class Versions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the list of a model's versions.

    Attributes:
        limit: how many items at the most.
        cursor: ``next`` of the page before.
        state: only items in this state.
        label: ``key=value``; only items that carry it. May be given several times.
    """

    limit: Limit = 100
    cursor: str | None = None
    state: VersionState | None = None
    label: tuple[str, ...] = ()


class Servings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the list of servings.

    Attributes:
        limit: how many items at the most.
        cursor: ``next`` of the page before.
        state: only items in this state.
        label: ``key=value``; only items that carry it. May be given several times.
    """

    limit: Limit = 100
    cursor: str | None = None
    state: ServingState | None = None
    label: tuple[str, ...] = ()


Filtered = Trainings | Datastores | Servings | Versions


def list_request(project: str, query: Filtered) -> ListRequest:
    """The request of a room's list verb.

    Raises:
        Invalid: a label can't be one.
    """
    return ListRequest(
        project=project,
        limit=query.limit,
        cursor=query.cursor,
        state=query.state,
        labels=labels_of(query.label),
    )
