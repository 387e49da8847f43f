"""One cycle after the other: begun, looked after while it runs, ended, recorded.

    begin ──► heap.run_cycle_async, or mark and sweep in steps ──► end
                 revise: figures ► pacer ► settle (set_goal)         finalizers, next goal, record

Whoever uses it sees to it that one thread at a time is in a cycle. The lock is the collector's; it is
held for arithmetic, never while the heap or a finalizer works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .effort import GOAL_UTILIZATION
from .pacer import Pacer
from .protocol import Heap, HeapFigures
from .trace import Cycle

__all__ = ["Cycles"]

_LOOK_S = 0.005
"""How often a running cycle is looked at. Arbitrary: short beside the time to reach a goal."""
_FEWEST_CELLS = 64
_UNKNOWN_CELL_BYTES = 128
"""What reading a cell costs until a first cycle has shown it: a cell with some edges."""
_ALL = 1 << 62


class _Running:
    """A cycle that has begun and not ended."""

    __slots__ = (
        "before",
        "began_s",
        "begin_s",
        "finished_mark",
        "reason",
        "stepped",
        "trigger_bytes",
    )

    def __init__(
        self,
        reason: str,
        began_s: float,
        before: HeapFigures,
        trigger_bytes: int,
        *,
        stepped: bool,
    ) -> None:
        self.reason, self.began_s, self.before = reason, began_s, before
        self.trigger_bytes = trigger_bytes
        self.stepped = stepped  # else it goes on by itself, whatever becomes of its leader
        self.begin_s = 0.0
        self.finished_mark = False


class Cycles:
    """Runs cycles on a heap, and counts them.

    Args:
        settle: passes what the pacer wants on to the heap; called under the lock.
        began: called under the lock when a cycle begins.
    """

    def __init__(
        self,
        heap: Heap,
        pacer: Pacer,
        clock: Callable[[], float],
        lock: threading.Condition,
        settle: Callable[[], None],
        began: Callable[[], None],
    ) -> None:
        self._heap, self._pacer, self._clock, self._lock = heap, pacer, clock, lock
        self._settle, self._began = settle, began
        self._running: _Running | None = None
        self._made_s = self._accounted_s = clock()
        self._accounted_assist_ns = 0
        self.begun = 0  # numbers of the last cycle that has
        self.ended = 0  # ended <= begun <= ended + 1
        self.ended_s = self.rest_until_s = self._made_s
        self.last: Cycle | None = None
        self.by_reason: dict[str, int] = {}
        self.swept_bytes = self.finalizers = 0
        self.collecting_s = 0.0

    @property
    def abandoned(self) -> bool:
        """Whether a cycle runs by itself while nobody leads it: an interrupt took its leader away."""
        return self._running is not None and not self._running.stepped

    @property
    def queued(self) -> bool:
        """Whether finalizers wait, of what was released by hand."""
        return self._heap.figures().finalizers_queued > 0

    def finalize(self) -> None:
        """Run the finalizers that wait, between cycles."""
        finalizers = self._heap.run_finalizers()
        with self._lock:
            self.finalizers += finalizers

    def finish(self) -> Cycle | None:
        """See through what was begun and left; return what it was, None: nothing was."""
        cycle = None
        while (running := self._running) is not None:
            cycle = self.step(_ALL, running.reason) if running.stepped else self._see_through()
        return cycle

    def run(self, reason: str) -> Cycle:
        """Run a whole cycle on the heap's own thread."""
        running = self._begin(reason, stepped=False)
        try:
            self._heap.run_cycle_async()
        except BaseException:  # none began, whatever was said of it
            self._running = None
            self.begun -= 1
            raise
        running.begin_s = self._clock() - running.began_s
        return self._see_through()

    def _see_through(self) -> Cycle:
        while not self._heap.wait(_LOOK_S):
            self._revise()
        return self._end()

    def step(self, budget_bytes: int, reason: str) -> Cycle | None:
        """Do about so much of a cycle on this thread; return it when it has ended."""
        heap, running = self._heap, self._running
        if running is None:
            running = self._begin(reason, stepped=True)
            heap.begin_cycle()
            running.begin_s = self._clock() - running.began_s
            return None
        if not running.finished_mark:
            if heap.mark(budget_bytes):
                heap.finish_mark()
                running.finished_mark = True
            self._revise()
            return None
        figures = heap.figures()
        cell_bytes = max(figures.live_bytes // max(figures.live_cells, 1), 1)
        if not heap.sweep(max(budget_bytes // cell_bytes, _FEWEST_CELLS)):
            return None
        return self._end()

    def _begin(self, reason: str, *, stepped: bool) -> _Running:
        with self._lock:
            before = self._heap.figures()
            self._account(before)
            trigger_bytes = self._pacer.trigger_bytes
            self._pacer.start_cycle(
                before.live_bytes,
                scannable_bytes=None if self.ended else before.live_cells * _UNKNOWN_CELL_BYTES,
                periodic=reason == "period",
            )
            self._settle()
            self.begun += 1
            self._began()
            running = _Running(reason, self._clock(), before, trigger_bytes, stepped=stepped)
            self._running = running
            return running

    def _revise(self) -> None:
        with self._lock:
            now = self._heap.figures()
            self._account(now)
            self._pacer.revise(
                now.live_bytes, now.scan_work_bytes - now.roots_bytes, now.roots_bytes
            )
            self._settle()

    def _end(self) -> Cycle:
        running = self._running
        assert running is not None
        after, before, now_s = self._heap.figures(), running.before, self._clock()
        finalizers = self._heap.run_finalizers()  # the user's code: outside the lock
        with self._lock:
            self._account(after)
            pacer = self._pacer
            assist_s = (after.assist_ns - before.assist_ns) / 1e9
            background_s = (after.mark_ns - before.mark_ns) / 1e9
            sweep_s = (after.sweep_ns - before.sweep_ns) / 1e9
            mark_s = (after.marking_ns - before.marking_ns) / 1e9
            utilization = GOAL_UTILIZATION
            if mark_s > 0:
                utilization = min((assist_s + background_s) / (mark_s * pacer.cores), 1.0)
            scanned_bytes = after.scan_work_bytes - after.roots_bytes
            ratio = pacer.revise(after.peak_bytes, scanned_bytes, after.roots_bytes)
            goal_bytes, limited = pacer.goal_bytes, pacer.limited
            # Found, and born since: all that is there once the sweep is done.
            pacer.end_cycle(after.live_bytes, utilization)
            swept_bytes = after.free_bytes - before.free_bytes
            self.collecting_s += assist_s + background_s + sweep_s
            cycle = Cycle(
                number=self.begun,
                reason=running.reason,
                began_s=running.began_s - self._made_s,
                begin_s=running.begin_s,
                mark_s=mark_s,
                sweep_s=sweep_s,
                assist_s=assist_s,
                background_s=background_s,
                live_before_bytes=before.live_bytes,
                live_after_bytes=after.live_bytes,
                peak_bytes=after.peak_bytes,
                marked_bytes=after.marked_bytes,
                swept_bytes=swept_bytes,
                goal_bytes=goal_bytes,
                trigger_bytes=running.trigger_bytes,
                scanned_bytes=scanned_bytes,
                roots_bytes=after.roots_bytes,
                globals_bytes=pacer.globals_bytes,
                utilization=utilization,
                assist_ratio=ratio,
                cons_mark=pacer.cons_mark,
                percent=pacer.percent,
                limited=limited,
                limiting=pacer.limiter.limiting,
                longest_stop_ns=after.longest_stop_ns,
                finalizers=finalizers,
                cores=pacer.cores,
                spent=self.collecting_s / max((now_s - self._made_s) * pacer.cores, 1e-9),
            )
            self._running, self.last = None, cycle
            self.ended, self.ended_s = self.begun, now_s
            self.by_reason[running.reason] = self.by_reason.get(running.reason, 0) + 1
            self.swept_bytes += swept_bytes
            self.finalizers += finalizers
            self._settle()
            if running.reason == "limit" and pacer.limit_plan().goal_bytes <= after.live_bytes:
                # What is in use exceeds the limit by itself. Collecting again at once would change
                # nothing, and there would be nothing but collecting: at most half of the time.
                cores_s = (assist_s + background_s + sweep_s) / pacer.cores
                wall_s = now_s - running.began_s
                self.rest_until_s = now_s + max(wall_s, 2 * cores_s - wall_s)
        return cycle

    def _account(self, figures: HeapFigures) -> None:
        """Tell the CPU limiter how time was spent since it was last told."""
        now_s = self._clock()
        assist_s = (figures.assist_ns - self._accounted_assist_ns) / 1e9
        self._pacer.elapse(now_s - self._accounted_s, assist_s=assist_s)
        self._accounted_s, self._accounted_assist_ns = now_s, figures.assist_ns
