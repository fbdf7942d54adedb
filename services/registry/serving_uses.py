"""Which versions a serving holds, told by its events: pure."""

from shared.contracts.serving import Serving


def held_by(event: str, serving: Serving) -> tuple[int, ...]:
    """Versions of its model that a serving serves, or is about to, as of this event."""
    if event == "deleted":
        return ()
    live = {
        number
        for each in serving.revisions
        if each.state in ("deploying", "ready")
        for number in (each.version, *map(int, each.traffic))
    }
    named = {number for number in (serving.version, serving.spec.version) if number is not None}
    return tuple(sorted(live | named))
