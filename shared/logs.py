"""Log lines: one JSON object each, with the cause of the work they speak of."""

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

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


class _Stream:
    """Standard error, without its errors: a log that can't be written must not end the work that it speaks of.

    Lines are lost while the disk that takes them is full, or once nobody reads them.
    """

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def configure(service: str, level: str, form: str) -> None:
    """Set up structlog and the standard library's logging for a process."""
    stream = _Stream()
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
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, stream)),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(number, logging.WARNING))
