"""Logs: one event per line, JSON for machines and readable text on a terminal (structlog).

An event is a short sentence; what belongs to it are named values. Secrets are never values.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from manatee.config import Log


@contextmanager
def _without(module: str) -> Iterator[None]:
    """Within, whoever would like to have this module has to do without, unless it is there already."""
    known = module in sys.modules
    sys.modules.setdefault(module, None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if not known:
            del sys.modules[module]


with _without("rich"):  # which structlog has for the tracebacks of a terminal: 66 modules, 3 MiB in every daemon
    import structlog

Logger = structlog.typing.FilteringBoundLogger


def set_up(settings: Log, **context: Any) -> Logger:
    """Configure this process's logging, to standard error, and return its logger with `context` in every line."""
    level = getattr(logging, settings.level.upper())
    readable = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered = (
        # A traceback without the values of variables: a secret may be among them.
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if readable
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    _adopt_libraries(level, shared, rendered)
    return cast(Logger, structlog.get_logger(**context))


def _adopt_libraries(level: int, shared: list[Any], rendered: list[Any]) -> None:
    """What libraries log through the standard module comes out in the same form, from `warning` upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
