"""Work in a thread that a task waits for to its end, also when the task is cancelled meanwhile.

asyncio.to_thread leaves the thread alone with what the task then takes away from it: a file that is
being written and is closed, say.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable
from typing import TypeVar

import anyio

__all__ = ["in_thread"]

_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T]) -> _T:
    """Return what the work returns. A cancellation is passed on when it is done."""
    context = contextvars.copy_context()
    done = asyncio.get_running_loop().run_in_executor(None, lambda: context.run(work))
    try:
        await asyncio.wait([done])
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not done.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([done])
        done.exception()  # seen: whoever waited for it has gone
        raise
    try:
        return done.result()
    finally:
        del done  # what it raises has this frame in its traceback: a cycle for each failure
