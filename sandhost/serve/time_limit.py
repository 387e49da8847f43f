"""A time for what is awaited in a block, which costs next to nothing where nothing is waited for.

What anyio.fail_after does, for asyncio alone, and once for each piece of a request: it takes 10 µs there, as
long as all that is done with a small piece, and this takes 1.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["TimeLimit"]


class TimeLimit:
    """Ends the block by cancelling its task, and turns that into TimeoutError.

    Args:
        seconds: from the beginning of the block; None: as long as it takes.
    """

    __slots__ = ("_before", "_over", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._over = False
        self._before = 0  # cancellations of the task that are none of ours
        self._task: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Its time is over now. Within the block, and of a limit that has a time."""
        assert self._task is not None
        self._over = True
        self._task.cancel()

    def __enter__(self) -> None:
        if self._seconds is not None:
            task = self._task = asyncio.current_task()
            assert task is not None
            self._before = task.cancelling() if hasattr(task, "cancelling") else 0
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self.end)

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._over:
            return
        assert self._task is not None
        # Python 3.11 counts: who was cancelled by somebody else too stays cancelled.
        left = self._task.uncancel() if hasattr(self._task, "uncancel") else 0
        if isinstance(error, asyncio.CancelledError) and left <= self._before:
            raise TimeoutError from None
