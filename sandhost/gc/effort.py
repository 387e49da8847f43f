"""How hard a cycle works: who marks, what allocating guests help, how fast one side is to the other.

The arithmetic is that of Go's runtime/mgcpacer.go (1.27: startCycle, revise, endCycle). Work and
sizes are bytes. Utilization is a share of all cores' time while a cycle marks, 0 to 1.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GOAL_UTILIZATION", "Workers", "assist_ratio", "cons_mark", "runway", "workers"]

GOAL_UTILIZATION = 0.25
"""Share of the cores that marking takes in the background while a cycle runs."""

_WORST_ROUNDING = 0.3
_LEAST_WORK_BYTES = 1000
_OVERSHOOT = 1.1
_PERCENT_WHEN_OFF = 100_000
_MOST_UTILIZATION = 0.999


class Workers(NamedTuple):
    """Who marks in the background. dedicated + fractional * cores = 0.25 * cores, within 30 %."""

    dedicated: int
    """Threads that mark until the cycle ends."""
    fractional: float
    """Share of the time that each of the other cores marks; 0: none."""
    idle: int
    """Cores that may mark too while they have nothing else to do."""

    def background(self, cores: int) -> float:
        """Return how many cores' time that is, without idle ones."""
        return self.dedicated + self.fractional * cores


def workers(cores: int, *, periodic: bool = False) -> Workers:
    """Divide a quarter of the cores. A periodic cycle is in no hurry, so idle cores stay idle."""
    wanted = cores * GOAL_UTILIZATION
    dedicated, fractional = int(wanted + 0.5), 0.0
    if abs(dedicated / wanted - 1) > _WORST_ROUNDING:  # 1 to 3 cores, and 6
        dedicated -= dedicated > wanted
        fractional = (wanted - dedicated) / cores
    if periodic:
        return Workers(dedicated, fractional, 0 if dedicated else 1)
    return Workers(dedicated, fractional, cores - dedicated)


def assist_ratio(
    *,
    goal_bytes: int,
    triggered_bytes: int,
    live_bytes: int,
    work_bytes: int,
    expected_bytes: int,
    worst_bytes: int,
    percent: float | None,
    ceiling_bytes: int,
) -> float:
    """Return the bytes of scan work that allocating one byte must do, or take from the background.

    Args:
        goal_bytes: of this cycle; the cycle's work is spread over the way there.
        triggered_bytes: where the cycle began.
        work_bytes: what has been scanned so far, roots and cells.
        expected_bytes: what the last cycle scanned.
        worst_bytes: all that there could be to scan.
        ceiling_bytes: what the memory limit leaves to the heap; a goal is never pushed beyond it.
    """
    ceiling_bytes = max(ceiling_bytes, goal_bytes)
    if work_bytes > expected_bytes:
        # The heap grows. Go on at the same pace towards the worst case, over a way that is longer
        # in proportion, but not beyond what the next cycle may use in any case.
        way = (goal_bytes - triggered_bytes) * worst_bytes / max(expected_bytes, 1)
        growth = 1 + (_PERCENT_WHEN_OFF if percent is None else percent) / 100
        goal_bytes = int(min(triggered_bytes + way, growth * goal_bytes, ceiling_bytes))
        expected_bytes = worst_bytes
    if live_bytes > goal_bytes:  # too late: a last tenth, and everything must be done by then
        goal_bytes = int(min(goal_bytes * _OVERSHOOT, ceiling_bytes))
        expected_bytes = worst_bytes
    remaining = max(expected_bytes - work_bytes, _LEAST_WORK_BYTES)
    return remaining / max(goal_bytes - live_bytes, 1)


def cons_mark(
    allocated_bytes: int, work_bytes: int, utilization: float, idle_utilization: float = 0.0
) -> float:
    """Return how fast a core's time allocates, in units of how fast a core's time marks.

    Idle cores marked too, but would have been the program's had it wanted them: their time counts
    for marking and is not taken off allocating.
    """
    utilization = min(utilization, _MOST_UTILIZATION)
    per_program_core = allocated_bytes / (1 - utilization)
    return per_program_core * (utilization + idle_utilization) / work_bytes


def runway(cons_mark: float, expected_bytes: int) -> float:
    """Return the bytes that are allocated while a cycle scans `expected_bytes` at the goal utilization."""
    return cons_mark * (1 - GOAL_UTILIZATION) / GOAL_UTILIZATION * expected_bytes
