"""Tasks that nobody waits for, until the end: what ends one of them before is in the log at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from .._log import get_logger

__all__ = ["in_background"]


def in_background(work: Awaitable[None]) -> asyncio.Future[None]:
    """Start work. Whoever gathers its errors at the end may throw them away."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_tell)
    return task


def _tell(task: asyncio.Future[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        get_logger("sandhost.serve").error("work in the background failed", exc_info=error)
