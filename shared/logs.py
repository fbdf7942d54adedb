"""Log lines: one JSON object each, with the cause of the work they speak of."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from shared import context


def _add_cause(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    cause = context.current()
    if cause.traceparent:
        event["trace"] = cause.traceparent.split("-")[1]
    if cause.causation:
        event["causation"] = cause.causation
    if cause.actor:
        event["actor"] = cause.actor
    return event


def configure(service: str, level: str, form: str) -> None:
    """Set up structlog and the standard library's logging for a process."""
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_cause,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(number, logging.WARNING))
