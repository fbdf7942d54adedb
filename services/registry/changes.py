"""Writes what was decided about a version, and tells the world, in the transaction that is open."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.registry import alias_store, store
from services.registry.model import Decision, StoredVersion, view
from shared import context
from shared.contracts.model import Version, VersionEvent
from shared.outbox import Outbox
from shared.postgres import Transaction


async def apply(transaction: Transaction, outbox: Outbox, before: StoredVersion, decision: Decision) -> None:
    """Save a decision about a version that was loaded with a lock."""
    if decision.drop:
        await store.drop_version(transaction, before.key)
    elif decision.version != before:
        await store.save_version(transaction, decision.version)
    await tell(transaction, outbox, decision)


async def tell(transaction: Transaction, outbox: Outbox, decision: Decision) -> None:
    """Publish a decision's events."""
    version = decision.version
    for event in decision.events:
        shown = (await shown_versions(transaction, version.project, version.model, [version]))[0]
        await outbox.append(transaction, "version", event, version.project, version.model, VersionEvent(version=shown))


async def shown_versions(
    transaction: Transaction, project: str, model: str, versions: Sequence[StoredVersion]
) -> list[Version]:
    """Versions as users see them, with who points at them."""
    aliases = await alias_store.load_of(transaction, project, [model])
    servings = await store.servings_of(transaction, project, model, [each.number for each in versions])
    return [
        view(
            each,
            tuple(alias.name for alias in aliases if alias.version == each.number),
            servings[each.number],
        )
        for each in versions
    ]


@contextmanager
def caused_by(version: StoredVersion) -> Iterator[None]:
    """Everything inside goes back to what made this version."""
    cause = context.Cause(actor=version.created_by, traceparent=version.traceparent, causation=version.causation)
    with context.caused_by(cause):
        yield
