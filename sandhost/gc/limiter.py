"""A limit on the time that collecting takes: a leaky bucket, as Go's runtime/mgclimit.go (1.27).

    collecting, core-seconds ──► ┌────────┐
                                 │        │  full: allocating guests help no more,
                                 │▒▒▒▒▒▒▒▒│  whatever the heap goal says
                                 └────────┘ ──► the program's own core-seconds

It fills and drains second for second, so only a collector that takes over half of the time for
long fills it. What it holds is its whole memory: a quiet day earns nothing for the next one.
"""

from __future__ import annotations

from .effort import GOAL_UTILIZATION

__all__ = ["CpuLimiter"]

_CAPACITY_PER_CORE_S = 1.0


class CpuLimiter:
    """Core-seconds of collecting that have not been paid for.

    0 <= fill_s <= capacity_s; limiting means fill_s == capacity_s. Not for several threads at once.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.fill_s = 0.0
        self.overflow_s = 0.0
        """Core-seconds that found the bucket full."""

    @property
    def capacity_s(self) -> float:
        """What it holds: one second a core."""
        return self.cores * _CAPACITY_PER_CORE_S

    @property
    def limiting(self) -> bool:
        """Whether guests must not be made to assist."""
        return self.fill_s >= self.capacity_s

    def elapse(
        self, seconds: float, *, assist_s: float = 0.0, idle_s: float = 0.0, collecting: bool
    ) -> None:
        """Account for a stretch of time.

        Args:
            seconds: by the wall clock.
            assist_s: core-seconds that allocating guests spent on marking.
            idle_s: core-seconds that nobody wanted; they prove nothing either way.
            collecting: whether a cycle marked meanwhile, in the background at its goal utilization.
        """
        total_s = seconds * self.cores
        collector_s = assist_s + (total_s * GOAL_UTILIZATION if collecting else 0.0)
        self._pour(collector_s, max(total_s - idle_s - collector_s, 0.0))

    def stop(self, seconds: float) -> None:
        """Account for a time in which the collector let nobody run."""
        self._pour(seconds * self.cores, 0.0)

    def _pour(self, collector_s: float, program_s: float) -> None:
        fill_s = self.fill_s + collector_s - program_s
        self.overflow_s += max(fill_s - self.capacity_s, 0.0)
        self.fill_s = min(max(fill_s, 0.0), self.capacity_s)
