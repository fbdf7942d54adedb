"""What operations measure of trainings; served at ``/metrics``."""

from datetime import datetime

from prometheus_client import Counter, Gauge, Histogram

from services.scheduler.model import Decision, TrainingRecord

_EVENTS = Counter("elearn_training_events_total", "Lifecycle events of trainings and tasks.", ["noun", "event"])
_WAITED = Histogram(
    "elearn_training_wait_seconds",
    "From a place in the queue to a start.",
    buckets=(0.05, 0.25, 1, 5, 30, 120, 600, 3600, 14400, 86400),
)
_FREEING = Histogram(
    "elearn_training_freeing_seconds",
    "From a training's end to everything freed.",
    buckets=(0.05, 0.1, 0.25, 0.5, 0.7, 1, 2, 5, 10, 30, 60),
)
_ACTIVE = Gauge("elearn_trainings", "Trainings that wait or hold compute, as the leader sees them.", ["state"])
_CALLS_FAILED = Counter("elearn_cloud_calls_failed_total", "Calls to the cloud that are tried again.", ["call"])


def note_change(before: TrainingRecord, decision: Decision, now: datetime) -> None:
    """Count what happened to a training."""
    after = decision.record
    for happened in decision.events:
        _EVENTS.labels(happened.noun, happened.event).inc()
    if before.state == "queued" and after.state == "starting":
        _WAITED.observe(max(0.0, (now - before.queued_at).total_seconds()))
    if before.freed_at is None and after.freed_at is not None and after.finished_at is not None:
        _FREEING.observe(max(0.0, (after.freed_at - after.finished_at).total_seconds()))


def note_active(states: list[str]) -> None:
    """Show how many trainings are in which state."""
    for state in ("queued", "starting", "running", "freeing"):
        _ACTIVE.labels(state).set(states.count(state))


def note_failed_call(call: str) -> None:
    """Count a call to the cloud that did not go through."""
    _CALLS_FAILED.labels(call).inc()
