"""What users see of a serving: pure."""

from services.serving.model import StoredRevision, StoredServing
from shared.contracts.serving import Revision, Serving


def view(stored: StoredServing) -> Serving:
    """A serving as users see it."""
    live = stored.revision(stored.live)
    return Serving(
        project=stored.project,
        name=stored.name,
        spec=stored.spec,
        state=stored.state,
        created_at=stored.created_at,
        replicas=stored.spec.replicas if stored.scaled_to is None else stored.scaled_to,
        reason=stored.reason,
        created_by=stored.created_by,
        version=live.version if live else None,
        ready_replicas=stored.ready_replicas,
        endpoint=stored.endpoint if stored.live else None,
        revision=stored.live,
        revisions=tuple(_view(revision) for revision in stored.revisions),
        ready_at=stored.ready_at,
        traffic=_shares(live) if live else {},
    )


def _view(revision: StoredRevision) -> Revision:
    return Revision(
        number=revision.number,
        version=revision.version,
        created_at=revision.created_at,
        state=revision.state,
        reason=revision.reason,
        cause=revision.cause,
        ready_at=revision.ready_at,
        traffic=_shares(revision),
    )


def _shares(revision: StoredRevision) -> dict[str, int]:
    """A split as users write it; empty where one version gets everything."""
    if len(revision.traffic) == 1:
        return {}
    return {str(number): share for number, share in sorted(revision.traffic.items())}
