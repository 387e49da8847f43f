"""How large the heap may get before a cycle ends, and where that cycle must begin.

           marked                min     trigger        max    goal
    0 ───────┼────────────────────┼─────────┼────────────┼──────┤ · · · · · limit
             │    0.7 of the way  │         │◄── runway ────────►│
             │                    └─ window of the trigger ┘    │
             └─ what the last cycle left                        └─ min(percent goal, limit goal)

The arithmetic is that of Go's runtime/mgcpacer.go (1.27: heapGoalInternal, memoryLimitHeapGoal,
trigger). All sizes are bytes; every function takes numbers and returns numbers.
"""

from __future__ import annotations

from typing import NamedTuple

from ..limits import UNLIMITED

__all__ = ["MINIMUM_HEAP_BYTES", "Plan", "limit_goal", "percent_goal", "plan"]

MINIMUM_HEAP_BYTES = 4 << 20
"""Below this a cycle costs more than it brings: the goal is never smaller at percent 100."""

_SWEEP_DISTANCE_BYTES = 1 << 20
_SMALLEST_RUNWAY_BYTES = 64 << 10
_HEADROOM_PERCENT = 3
_SMALLEST_HEADROOM_BYTES = 1 << 20
# Bounds of the trigger between marked and goal, in 64ths: 0.7 and 0.95, both Go's by experiment.
_EARLIEST, _LATEST = 45, 61


class Plan(NamedTuple):
    """Where the next cycle begins and where it should end. marked <= trigger <= goal unless limited."""

    goal_bytes: int
    """`UNLIMITED` when nothing asks for a cycle."""
    trigger_bytes: int
    limited: bool
    """The memory limit sets the goal, not the percent."""


def percent_goal(
    marked_bytes: int, roots_bytes: int, percent: float | None, minimum_heap_bytes: int
) -> int:
    """Return the goal that lets the heap grow by `percent` of what must be scanned.

    Roots count, since scanning them is work that the growth has to pay for. None: no goal.
    """
    if percent is None:
        return UNLIMITED
    grown = marked_bytes + int((marked_bytes + roots_bytes) * percent // 100)
    return max(grown, int(minimum_heap_bytes * percent // 100))


def limit_goal(
    limit_bytes: int | None, marked_bytes: int, other_bytes: int, over_bytes: int
) -> int:
    """Return the goal that keeps the heap and all else below the memory limit.

    Args:
        limit_bytes: of heap and other together; None: no limit.
        marked_bytes: what the last cycle left; the goal is never below.
        other_bytes: what counts against the limit and is not in the heap.
        over_bytes: by how much the limit is exceeded now; taken off once more, to come back.
    """
    if limit_bytes is None:
        return UNLIMITED
    room = limit_bytes - other_bytes - over_bytes
    if room <= 0:
        return marked_bytes  # nothing that collecting could reach: keep what is there
    headroom = max(room // 100 * _HEADROOM_PERCENT, _SMALLEST_HEADROOM_BYTES)
    return max(room - headroom, headroom, marked_bytes)


def plan(
    *,
    percent_goal_bytes: int,
    limit_goal_bytes: int,
    marked_bytes: int,
    runway_bytes: float,
    smallest_window_bytes: int,
    triggered_bytes: int | None = None,
    unswept_from_bytes: int | None = None,
) -> Plan:
    """Return goal and trigger.

    Args:
        runway_bytes: what will be allocated while a cycle does its work.
        smallest_window_bytes: a trigger this far below the goal is never too late.
        triggered_bytes: heap size at which the running cycle began; the goal stays ahead of it.
        unswept_from_bytes: heap size at the last cycle's end while its sweep still runs.
    """
    goal, earliest = percent_goal_bytes, 0
    if unswept_from_bytes is not None:
        earliest = unswept_from_bytes + _SWEEP_DISTANCE_BYTES
        goal = max(goal, earliest)
    if triggered_bytes is not None:
        goal = max(goal, triggered_bytes + _SMALLEST_RUNWAY_BYTES)
    limited = limit_goal_bytes < goal
    if limited:  # whatever moved the goal up: the limit stands, and the trigger below it
        goal, earliest = limit_goal_bytes, 0
    goal = min(goal, UNLIMITED)
    if goal == UNLIMITED or marked_bytes >= goal:
        return Plan(goal, goal, limited)
    sixty_fourth = (goal - marked_bytes) // 64
    earliest = max(earliest, marked_bytes + sixty_fourth * _EARLIEST)
    latest = max(marked_bytes + sixty_fourth * _LATEST, goal - smallest_window_bytes, earliest)
    wanted = earliest if runway_bytes > goal else goal - int(runway_bytes)
    return Plan(goal, min(max(wanted, earliest), latest), limited)
