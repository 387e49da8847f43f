"""Work in a thread that a task waits for to its end, also when the task is cancelled meanwhile.

asyncio.to_thread leaves the thread alone with what the task then takes away from it: a file that is
being written and is closed, say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio

__all__ = ["in_thread"]

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T]) -> _T:
    """Return what the work returns. A cancellation is passed on when it is done."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        task.exception()  # seen: whoever waited for it has gone
        raise cancelled
    return task.result()
