"""Gives idle memory back in the background, in at most a hundredth of one processor's time.

Go's scavenger is the model (runtime/mgcscavenge.go): what a piece of work cost says how long to rest.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Scavenger"]


class Scavenger:
    """When to do the next piece of work.

    Args:
        work: does a bounded piece; returns the bytes it gave back.
        share: of one processor's time.
        period_s: shortest rest between two pieces.
        cpu_s: the thread's CPU time, in seconds.
    """

    def __init__(
        self,
        work: Callable[[], int],
        cpu_s: Callable[[], float],
        share: float = 0.01,
        period_s: float = 1.0,
    ) -> None:
        self._work, self._cpu_s = work, cpu_s
        self.share, self.period_s = share, period_s
        self.given_back_bytes = 0
        self.used_s = 0.0
        """CPU time spent so far."""
        self._next_s: float | None = None

    def turn(self, now_s: float) -> float:
        """Do a piece if it is time; return after how many seconds the next is due."""
        if self._next_s is None:
            self._next_s = now_s + self.period_s
        if now_s >= self._next_s:
            begun_s = self._cpu_s()
            self.given_back_bytes += self._work()
            cost_s = self._cpu_s() - begun_s
            self.used_s += cost_s
            self._next_s = now_s + max(self.period_s, cost_s / self.share)
        return self._next_s - now_s
