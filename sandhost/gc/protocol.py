"""What the collector asks of a heap. `sandhost.heap.HandleHeap` is one, the tests' simulated heap another.

    idle ── begin_cycle ──► mark ── mark(n) … True ── finish_mark ──► sweep ── sweep(n) … True ──► idle

`run_cycle_async` goes the same way on a thread of the heap's own; `wait` says when it has arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Heap", "HeapFigures"]


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

    def run_cycle_async(self) -> None:
        """Run a whole cycle, without finalizers, on the heap's own thread."""

    def wait(self, timeout_s: float, /) -> bool:
        """Wait for the end of the running cycle; False: it is not over yet."""

    def figures(self) -> HeapFigures:
        """Read everything at once."""

    def set_goal(
        self, goal_bytes: int, trigger_bytes: int, assist_ratio: float, cores: float, /
    ) -> None:
        """Take over what the pacer wants.

        Args:
            assist_ratio: bytes to read for each byte allocated, by whoever allocates it where the
                background has not.
            cores: how many cores' time the background has to mark, from now on.
        """
