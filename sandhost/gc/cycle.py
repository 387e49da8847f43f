"""One cycle after the other: begun, looked after while it runs, ended, recorded.

    begin ──► heap.run_cycle_async, or mark and sweep in steps ──► end
                 revise: figures ► pacer ► settle (set_goal)         finalizers, next goal, record

The heap begins cycles by itself too, and may be some ahead: `finish` takes them into account one by one, as
they were, and looks after the one that runs. Whoever uses it sees to it that one thread at a time is in a
cycle. The lock is the collector's; it is held for arithmetic, never while the heap or a finalizer works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from ..errors import SandhostError
from .effort import GOAL_UTILIZATION
from .pacer import Pacer
from .protocol import Heap, HeapCycle, HeapFigures
from .trace import Cycle

__all__ = ["ASKED", "Cycles"]

ASKED = "asked"
"""The reason of a `HeapCycle` that did not begin by itself."""

_LOOK_S = 0.005
"""How often a running cycle is looked at. Arbitrary: short beside the time to reach a goal."""
_FEWEST_CELLS = 64
_UNKNOWN_CELL_BYTES = 128
"""What reading a cell costs until a first cycle has shown it: a cell with some edges."""
_ALL = 1 << 62


class _Running:
    """A cycle that has begun and not ended, as far as is known here."""

    __slots__ = (
        "before",
        "began_s",
        "begin_s",
        "finished_mark",
        "number",
        "reason",
        "stepped",
        "trigger_bytes",
    )

    def __init__(
        self,
        number: int,
        reason: str,
        began_s: float,
        before: HeapFigures,
        trigger_bytes: int,
        *,
        stepped: bool,
    ) -> None:
        self.number, self.reason, self.began_s, self.before = number, reason, began_s, before
        self.trigger_bytes = trigger_bytes
        self.stepped = stepped  # else it goes on by itself, whatever becomes of its leader
        self.begin_s = 0.0
        self.finished_mark = False


class Cycles:
    """Runs cycles on a heap, and counts them. Their numbers are the heap's.

    Args:
        settle: passes what the pacer wants on to the heap; called under the lock.
        began: called under the lock when a cycle is known to have begun, with whether it did so by itself.
    """

    def __init__(
        self,
        heap: Heap,
        pacer: Pacer,
        clock: Callable[[], float],
        lock: threading.Condition,
        settle: Callable[[], None],
        began: Callable[[bool], None],
    ) -> None:
        self._heap, self._pacer, self._clock, self._lock = heap, pacer, clock, lock
        self._settle, self._began = settle, began
        self._running: _Running | None = None
        self._asked: str | None = None  # why, of the cycle that was asked of the heap's thread
        self._made_s = self._accounted_s = clock()
        self._accounted_assist_ns = 0
        self.number = heap.figures().begun
        """Of the last cycle that is known here."""
        self.ended = self.number
        """Of the last one that has ended."""
        self.count = 0
        """Cycles that have ended."""
        self.ended_s = self.rest_until_s = self._made_s
        self.last: Cycle | None = None
        self.by_reason: dict[str, int] = {}
        self.swept_bytes = self.finalizers = 0
        self.collecting_s = 0.0

    @property
    def as_of(self) -> int:
        """What is known here of the heap, as `Heap.set_goal` wants it."""
        return 2 * self.number - (self._running is not None)

    @property
    def unattended(self) -> bool:
        """Whether there is a cycle that nobody leads: it began by itself, or an interrupt took its leader."""
        return self._heap.cycle() is not None

    @property
    def queued(self) -> bool:
        """Whether finalizers wait, of what was released by hand."""
        return self._heap.figures().finalizers_queued > 0

    def finalize(self) -> None:
        """Run the finalizers that wait, between cycles."""
        finalizers = self._heap.run_finalizers()
        with self._lock:
            self.finalizers += finalizers

    def finish(self) -> Iterator[Cycle]:
        """See through what was begun, by itself or by somebody who left it; give each as it ends."""
        while True:
            running = self._running
            if running is not None and running.stepped:
                cycle = self.step(_ALL, running.reason)
                if cycle is not None:
                    yield cycle
            elif (known := self._heap.cycle()) is not None:
                yield self._see_through(known)
            else:
                return

    def run(self, reason: str) -> Cycle | None:
        """Run a whole cycle on the heap's own thread; None: there is one that nobody leads."""
        if not self._heap.run_cycle_async():
            return None
        self._asked = reason
        known = self._heap.cycle()
        assert known is not None
        return self._see_through(known)

    def _see_through(self, known: HeapCycle) -> Cycle:
        while True:
            running = self._running
            if running is None or running.number != known.number:
                running = self._adopt(known)
            if known.after is not None:
                return self._end(running, known.after, known.ended_s)
            if not self._heap.wait(_LOOK_S):
                self._revise()
            known = self._heap.cycle() or known

    def step(self, budget_bytes: int, reason: str) -> Cycle | None:
        """Do about so much of a cycle on this thread; return it when it has ended."""
        heap, running = self._heap, self._running
        if running is None or not running.stepped:
            known = heap.cycle()
            if known is not None:  # the heap's thread runs one: leave it the work
                if known.after is not None:
                    return self._see_through(known)
                if running is None:
                    self._adopt(known)
                self._revise()
                return None
            before, now_s = heap.figures(), self._clock()
            try:
                heap.begin_cycle()
            except SandhostError:
                if heap.cycle() is None:
                    raise
                return None  # it has begun one by itself just now
            number = heap.figures().begun
            began = _Running(number, reason, now_s, before, self._pacer.trigger_bytes, stepped=True)
            self._begin(began, by_itself=False)
            began.begin_s = self._clock() - now_s
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
        return self._end(running, heap.figures(), self._clock())

    def _adopt(self, known: HeapCycle) -> _Running:
        by_itself = known.reason != ASKED
        reason = known.reason if by_itself else self._asked or known.reason
        running = _Running(
            known.number, reason, known.began_s, known.before, known.trigger_bytes, stepped=False
        )
        self._begin(running, by_itself=by_itself)
        if not by_itself:
            self._asked = None
            running.begin_s = max((known.ended_s or self._clock()) - known.began_s, 0.0)
        return running

    def _begin(self, running: _Running, *, by_itself: bool) -> None:
        with self._lock:
            before = running.before
            self._account(before, running.began_s)
            self._pacer.start_cycle(
                before.live_bytes,
                scannable_bytes=None if self.count else before.live_cells * _UNKNOWN_CELL_BYTES,
                periodic=running.reason == "period",
            )
            self.number, self._running = running.number, running
            self._settle()
            self._began(by_itself)

    def _revise(self) -> None:
        with self._lock:
            now = self._heap.figures()
            if now.begun != self.number:
                return  # it is over, and the next one is under way
            self._account(now, self._clock())
            self._pacer.revise(
                now.live_bytes, now.scan_work_bytes - now.roots_bytes, now.roots_bytes
            )
            self._settle()

    def _end(self, running: _Running, after: HeapFigures, ended_s: float | None) -> Cycle:
        before, now_s = running.before, self._clock() if ended_s is None else ended_s
        finalizers = self._heap.run_finalizers()  # the user's code: outside the lock
        with self._lock:
            self._account(after, now_s)
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
            limited = pacer.limited
            # Found, and born since: all that is there once the sweep is done.
            pacer.end_cycle(after.live_bytes, utilization)
            swept_bytes = after.free_bytes - before.free_bytes
            self.collecting_s += assist_s + background_s + sweep_s
            cycle = Cycle(
                number=running.number,
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
                goal_bytes=after.heap_goal_bytes,
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
            self.ended, self.ended_s = running.number, now_s
            self.count += 1
            if not running.stepped:
                self._heap.forget_cycle(running.number)
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

    def _account(self, figures: HeapFigures, now_s: float) -> None:
        """Tell the CPU limiter how time was spent since it was last told."""
        assist_ns = max(figures.assist_ns - self._accounted_assist_ns, 0)
        self._pacer.elapse(max(now_s - self._accounted_s, 0.0), assist_s=assist_ns / 1e9)
        self._accounted_s = max(now_s, self._accounted_s)
        self._accounted_assist_ns += assist_ns
