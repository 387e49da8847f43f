"""What the collector asks of a heap. `sandhost.heap.HandleHeap` is one, the tests' simulated heap another.

    idle ── begin_cycle ──► mark ── mark(n) … True ── finish_mark ──► sweep ── sweep(n) … True ──► idle

`run_cycle_async` goes the same way on a thread of the heap's own; `wait` says when it has arrived. Where
`set_goal` allows it, the heap begins such a cycle by itself as it passes the trigger. Each leaves a record,
which `cycle` gives and `forget_cycle` takes away, so that a collector that comes late misses none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Heap", "HeapCycle", "HeapFigures"]


class HeapFigures(Protocol):
    """One reading of a heap. A named tuple, with these fields at least.

    live_bytes == alloc_bytes - free_bytes. Counters count from the heap's beginning and only grow.
    """

    @property
    def live_bytes(self) -> int:
        """All that is allocated and not freed, garbage that no sweep has reached included."""

    @property
    def live_cells(self) -> int:
        """The same, in cells."""

    @property
    def alloc_bytes(self) -> int:
        """Counter."""

    @property
    def free_bytes(self) -> int:
        """Counter: swept and released by hand."""

    @property
    def marked_bytes(self) -> int:
        """Found by the running cycle so far, or by the last one; what was born meanwhile is not in it."""

    @property
    def scan_work_bytes(self) -> int:
        """Read by the running cycle so far, or by the last one, roots included."""

    @property
    def roots_bytes(self) -> int:
        """Of these, roots: what does not lie in the heap and had to be read."""

    @property
    def assist_ns(self) -> int:
        """Counter: core time that allocating guests spent on marking."""

    @property
    def mark_ns(self) -> int:
        """Counter: core time of marking in the background."""

    @property
    def sweep_ns(self) -> int:
        """Counter: core time of sweeping."""

    @property
    def longest_stop_ns(self) -> int:
        """The longest that any guest was ever held up."""

    @property
    def finalizers_queued(self) -> int:
        """What `run_finalizers` would run."""

    @property
    def peak_bytes(self) -> int:
        """What was live when the last cycle had marked everything."""

    @property
    def marking_ns(self) -> int:
        """Counter: time by the clock in which cycles marked; one that still does is not in it."""

    @property
    def heap_goal_bytes(self) -> int:
        """The goal that holds: as `set_goal` was told, or the heap's own."""

    @property
    def begun(self) -> int:
        """Counter: cycles that have begun."""


class HeapCycle(Protocol):
    """A cycle of the heap's own thread. A named tuple, with these fields."""

    @property
    def number(self) -> int:
        """What `begun` became as it began."""

    @property
    def reason(self) -> str:
        """Why it began: "asked", or by itself "heap goal" or "limit"; see `run_cycle_async`."""

    @property
    def began_s(self) -> float:
        """By the collector's clock."""

    @property
    def ended_s(self) -> float | None:
        """None: it runs."""

    @property
    def trigger_bytes(self) -> int:
        """As it was when it began."""

    @property
    def before(self) -> HeapFigures:
        """The heap as it began."""

    @property
    def after(self) -> HeapFigures | None:
        """The heap as it ended."""


class Heap(Protocol):
    """A heap that is collected beside the program that uses it.

    All methods may be called from any thread; those of a cycle from one at a time.
    """

    on_trigger: Callable[[], object] | None
    """Called outside the heap's locks, on the allocating thread, when `live_bytes` passes the trigger:
    once after each `set_goal` that left it below; and when many finalizers wait, because guests release
    by hand. It only wakes somebody."""

    def begin_cycle(self) -> None:
        """Begin to mark. From here on the barrier keeps what is unlinked, and new cells are marked."""

    def mark(self, budget_bytes: int, /) -> bool:
        """Read about so many bytes; True: nothing grey is left for now."""

    def finish_mark(self) -> None:
        """Mark what is left, which is little, and begin to sweep."""

    def sweep(self, budget_cells: int, /) -> bool:
        """Look at so many cells and free those that are not marked; True: the cycle is over."""

    def run_finalizers(self) -> int:
        """Run the finalizers of what was swept, outside all locks; return how many."""

    def run_cycle_async(self) -> bool:
        """Run a whole cycle, without finalizers, on the heap's own thread; False: one is under way."""

    def wait(self, timeout_s: float, /) -> bool:
        """Wait for the end of the cycle that the thread runs now; False: it is not over yet."""

    def cycle(self) -> HeapCycle | None:
        """Return the oldest cycle of the thread that was not forgotten, running or over."""

    def forget_cycle(self, number: int, /) -> None:
        """Forget that one: it is over, and taken into account."""

    def figures(self) -> HeapFigures:
        """Read everything at once."""

    def set_goal(
        self,
        goal_bytes: int,
        trigger_bytes: int,
        assist_ratio: float,
        cores: float,
        /,
        *,
        limited: bool,
        as_of: int,
        by_itself: tuple[float | None, int, int] | None,
    ) -> None:
        """Take over what the pacer wants.

        Args:
            assist_ratio: bytes to read for each byte allocated, by whoever allocates it where the
                background has not.
            cores: how many cores' time the background has to mark, from now on.
            limited: the memory limit has set the goal.
            as_of: for which moment that holds: `2 * begun`, less 1 while that cycle runs. At any other
                goal, trigger and ratio are too late, and not taken.
            by_itself: whether the heap may begin a cycle as it passes the trigger, and the goal it gives
                itself when one ends, until it is told another: what is left and so many percent again
                (None: no goal), at least so many bytes, and at most so many.
        """
