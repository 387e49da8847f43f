"""Loggers: structlog over the standard library, silent until the application listens.

structlog is imported when the first event is logged: it would be most of `import sandhost`.
"""

from __future__ import annotations

import functools
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

    import structlog

__all__ = ["get_logger"]


def _to_record(
    _logger: logging.Logger, _method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str, str], dict[str, Any]]:
    """Turn an event into a record that reads well and keeps its fields for JSON handlers."""
    name = event.pop("event")
    special = {key: event.pop(key) for key in ("exc_info", "stack_info") if key in event}
    fields = dict(event)
    shown = " ".join(f"{key}={value!r}" for key, value in fields.items())
    # The text goes in as an argument, so that a "%" in a guest's name is no format.
    return ("%s", f"{name} {shown}".rstrip()), {"extra": fields, **special}


@functools.cache
def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of one part, for example `get_logger("sandhost.cache")`.

    Call it where an event is logged, not when a module is imported. Fields become attributes of
    the LogRecord, so they avoid the names that it owns (`name`, `module`, `thread`, `process`,
    `args`).
    """
    import logging

    import structlog

    logging.getLogger("sandhost").addHandler(logging.NullHandler())
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _to_record],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger
