"""The event loop goes before all programs of the machine without a real-time priority, as long as it sleeps enough.

    busy for, of a tenth of a second     0 ──────────── 0.8 ──── 0.9 ──── 1
                                           real-time  ◄──┘        └──► ordinary

A loop that wakes up waits until whoever runs has had his slice. That takes milliseconds now and then, and what came
meanwhile waits with it; a niceness shortens it little. A thread with a real-time priority does not wait (SCHED_FIFO,
https://man7.org/linux/man-pages/man7/sched.7.html). One that never slept would leave others nothing, until the
kernel stops it for a twentieth of each second; so the loop goes back while it is that busy. Then it is its own
requests that wait for each other, and not for the processor.

What threads and processes inherit is an ordinary priority, so guests on workers and compilers have that. The host's
ticker goes before the loop (`Host(realtime=...)`), so that it ends a guest which the loop has called.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from .._log import get_logger

__all__ = ["PRIORITY", "Realtime", "may_be_realtime"]

PRIORITY = 1
"""The least. Of SCHED_FIFO."""
_LOOK_EVERY_S = 0.1
_BUSY, _IDLE_AGAIN = 0.9, 0.8
"""Arbitrary, below the 0.95 of sysctl kernel.sched_rt_runtime_us."""


def may_be_realtime() -> bool:
    """Return whether the loop may have its priority, and the ticker the next one; says in the log why not."""
    if len(os.sched_getaffinity(0)) == 1:
        get_logger("sandhost.serve").warning("realtime is on, and left out: there is one processor")
        return False
    try:
        _set(os.SCHED_FIFO, PRIORITY + 1)
    except OSError as error:
        get_logger("sandhost.serve").warning(
            "realtime is on, and the kernel says no: it takes RLIMIT_RTPRIO of 2, or CAP_SYS_NICE",
            error=error.strerror,
        )
        return False
    _go_first(False)
    return True


def _set(policy: int, priority: int) -> None:
    # The flag may not be taken off again without CAP_SYS_NICE, so it is there with both.
    os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def _go_first(first: bool) -> None:
    if first:
        _set(os.SCHED_FIFO, PRIORITY)
    else:
        _set(os.SCHED_OTHER, 0)


class Realtime:
    """The priority of this thread, by how busy it is.

    Args:
        clock: seconds, never going back.
        worked: seconds that this thread was on a processor.
        go_first: gives it a real-time priority, or takes it away.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
        go_first: Callable[[bool], None] = _go_first,
    ) -> None:
        self._clock, self._worked, self._go_first = clock, worked, go_first
        self._looked_s, self._worked_s = clock(), worked()
        self._is_first = False

    def look(self) -> None:
        """Decide anew, by what was since the last time."""
        now_s, worked_s = self._clock(), self._worked()
        busy = (worked_s - self._worked_s) / max(now_s - self._looked_s, 1e-9)
        self._looked_s, self._worked_s = now_s, worked_s
        first = busy < (_BUSY if self._is_first else _IDLE_AGAIN)
        if first != self._is_first:
            self._go_first(first)
            self._is_first = first

    async def keep(self) -> None:
        """Decide again and again, until this is cancelled: then the thread is an ordinary one."""
        try:
            while True:
                self.look()
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            if self._is_first:
                self._go_first(False)
