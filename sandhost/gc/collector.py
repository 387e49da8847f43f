"""The control loop of the handle heap: `host.gc`.

    heap ── begins by itself ─►┐                          ┌─► heap.run_cycle_async
    period, policies ─────────►├─ turn(): who is due? ────┤   every 5 ms: figures ► pacer ► set_goal
    collect() ────────────────►┘                          └─► finalizers, next goal, trace

cycle.py runs one cycle, looking.py asks the triggers; here is who leads. At the pacer's trigger the heap asks
nobody: it begins, and who leads next takes that cycle into account. Cycles are numbered. A caller of `collect()`
wants the first cycle that begins after its call, which is the next number; whoever finds nobody leading a cycle
leads one, all others wait for their number. So however many call at once, the cycle that runs and the one after
it serve them all.

One lock guards the pacer, the settings and the counters, and is never held while the heap works. What it guards
is one class, so the file is long.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .._log import get_logger
from ..errors import GuestClosed
from .adaptive import AdaptivePercent
from .cycle import Cycles
from .guards import ForcedBudget, Override, Overrides
from .looking import Looking
from .pacer import Pacer, checked_percent
from .protocol import Heap
from .trace import Cycle, tracer
from .triggers import HeapGoal, MemoryLimit, Request, Triggers

__all__ = ["Collector", "CollectorStats"]

_ADAPT_S = 0.25
"""Shortest window: over less, what a cycle happens to leave says more than the growth."""
_AFTER_FAILURE_S = 1.0
_REMEMBERED = 100
_LOGGER = "sandhost.gc"


class CollectorStats(NamedTuple):
    """What a collector has done. Counters, exact."""

    cycles: int
    by_reason: dict[str, int]
    forced_calls: int
    """Calls of `collect()`."""
    forced_shared: int
    """Of these, answered by a cycle that another caller led, or that began by itself."""
    forced_over_budget: int
    deferred: int
    """Put off: by the budget, while the host started, or from a finalizer."""
    pauses: int
    long_pauses: int
    policy_errors: int
    """User's policies that raised, and were removed."""
    swept_bytes: int
    """Given back while cycles ran."""
    finalizers: int
    collecting_s: float
    """Core time spent on marking and sweeping."""


def _daemon(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name="sandhost-gc", daemon=True)
    thread.start()
    return thread


class Collector:
    """Collects one heap when a trigger is due or somebody asks. Safe for threads; `close()` it.

    Nothing is collected before `start()`: what is asked for until then runs right after it.

    Args:
        heap: what is collected; see protocol.py.
        pacer: decides when, and how hard. The collector's from now on: change it only through here.
        triggers: what may start a cycle; None: the built-in ones.
        adaptive: sets the percent from the growth of what cycles leave, in windows of 0.25 s or more.
        budget: of forced collections.
        other_bytes: returns what counts against the memory limit beside the heap.
        long_pause_s: a pause that lasts longer is logged and counted.
        trace: is given each cycle that has ended; None: what SANDHOST_GCTRACE asks for.
        clock: seconds, never going back.
        thread: starts a thread that waits for triggers; None: nobody waits, call `turn()`.
    """

    def __init__(
        self,
        heap: Heap,
        pacer: Pacer,
        *,
        triggers: Triggers | None = None,
        adaptive: AdaptivePercent | None = None,
        budget: ForcedBudget | None = None,
        other_bytes: Callable[[], int] = int,
        long_pause_s: float = 10.0,
        trace: Callable[[Cycle], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        thread: Callable[[Callable[[], None]], threading.Thread] | None = _daemon,
    ) -> None:
        self.pacer = pacer
        self.triggers = triggers or Triggers()
        self.budget = budget or ForcedBudget()
        self._heap, self._adaptive, self._other_bytes = heap, adaptive, other_bytes
        self._long_pause_s = long_pause_s
        self._trace = trace or tracer()
        self.on_cycle: Callable[[Cycle], object] | None = None
        """Called with each cycle that has ended, after `trace`, on the thread that led it."""
        self.history: deque[Cycle] = deque(maxlen=_REMEMBERED)
        """The last cycles that have ended, oldest first."""
        self._clock, self._start_thread = clock, thread
        self._thread: threading.Thread | None = None
        self._lock = threading.Condition()
        self._wake = threading.Event()
        self.triggers.wake = self._wake.set
        self._started = self._closed = False
        self._leader: int | None = None  # the thread that is in a cycle
        self._waiting = 0  # threads that wait for one to end
        self._cycles = Cycles(heap, pacer, clock, self._lock, self._apply, self._tell_triggers)
        self._looking = Looking(self.triggers, heap, pacer, self._cycles, clock)
        self._base = pacer.percent
        self._overrides = Overrides()
        self._sampled_s, self._sampled_bytes = clock(), 0
        self._forced_calls = self._forced_shared = self._over_budget = self._deferred = 0
        self._pauses = self._long_pauses = 0

    # ---- beginning and end ----

    def start(self) -> None:
        """Begin to collect: the host has started."""
        with self._lock:
            self._check_open()
            if self._started:
                return
            self._started = True
            self._cycles.ended_s = self._sampled_s = self._clock()
            self._apply()
            self._heap.on_trigger = self._wake.set
        self._wake.set()
        if self._start_thread is not None:
            me, wake = weakref.ref(self), self._wake
            self._thread = self._start_thread(lambda: _wait_for_triggers(me, wake))

    def close(self) -> None:
        """Stop: wait for a cycle that runs, then no more begin. Idempotent."""
        with self._lock:
            self._closed = True
            self._heap.on_trigger = None
            self._lend_core(1)
            self._lock.notify_all()
            while self._leader not in (None, threading.get_ident()):
                self._lock.wait()
            leads = self._leader is None
            if leads:
                self._leader = threading.get_ident()
        if leads:
            self._lead(None, 0)  # what began by itself meanwhile
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __del__(self) -> None:
        if hasattr(self, "_wake"):
            self._wake.set()  # its thread holds it weakly, and finds it gone

    def _check_open(self) -> None:
        if self._closed:
            raise GuestClosed("the host is closed: its handles are not collected any more")

    # ---- what users ask for ----

    def collect(self) -> Cycle | None:
        """Run a full cycle that begins after this call, or share one; return what it was.

        What it found is swept, and its finalizers have run, when this returns. Memory goes back to
        Python's allocator, not to the operating system.

        Returns:
            None if it was put off: while the host starts, when a finalizer calls it, and beyond a
            budget that defers.

        Raises:
            GuestClosed: the host is closed.
        """
        with self._lock:
            self._check_open()
            self._forced_calls += 1
            self._lend_core(1)
        try:
            return self._collect()
        finally:
            with self._lock:
                self._lend_core(-1)

    def _collect(self) -> Cycle | None:
        with self._lock:
            if not self._started or self._leader == threading.get_ident():
                self._defer()
                return None
            wanted = self._heap.figures().begun + 1
            while self._leader is not None:
                self._lock.wait()
                if self._cycles.ended >= wanted:
                    self._forced_shared += 1
                    return self._cycles.last
                self._check_open()
            now_s = self._clock()
            within = self.budget.take(now_s)
            warn = not within and self.budget.may_warn(now_s)
            self._over_budget += not within
            put_off = not within and self.budget.defer
            if put_off:
                self._defer()
            else:
                self._leader = threading.get_ident()
        cycle = None
        if not put_off:
            cycle = self._lead("explicit", wanted)
            with self._lock:
                self._forced_shared += cycle is not None and not cycle.forced
        if warn:
            get_logger(_LOGGER).warning(
                "collections are forced too often",
                cycles=self.budget.cycles,
                period_s=self.budget.period_s,
                over=self._over_budget,
            )
        return cycle

    def step(self, budget_bytes: int, reason: str = "step") -> bool:
        """Do about so much of a cycle on this thread, for schedules of one's own; True: it has ended.

        The first step begins a cycle. Between steps guests run, and assist like in any cycle.

        Raises:
            GuestClosed: the host is closed.
        """
        with self._lock:
            self._check_open()
            if not self._started or self._leader is not None:
                return False
            self._leader = threading.get_ident()
        return self._step(budget_bytes, reason)

    @property
    def last(self) -> Cycle | None:
        """The cycle that ended last."""
        return self._cycles.last

    @property
    def percent(self) -> float | None:
        """Growth between collections, in percent of what the last one left; None: off.

        Within `percent_set` and `paused` it is what these want; setting it changes what comes back
        after them, and ends an adaptive percent.
        """
        with self._lock:
            return self._overrides.percent(self._base)

    @percent.setter
    def percent(self, percent: float | None) -> None:
        with self._lock:
            self.pacer.percent = percent  # checks it
            self._base, self._adaptive = percent, None
            self._apply()
        self._wake.set()

    @property
    def memory_limit(self) -> int | None:
        """Soft limit in bytes of the heap and what counts beside it; None: none."""
        return self.pacer.memory_limit_bytes

    @memory_limit.setter
    def memory_limit(self, limit_bytes: int | None) -> None:
        with self._lock:
            self.pacer.memory_limit_bytes = limit_bytes
            self._apply()
        self._wake.set()

    @contextlib.contextmanager
    def percent_set(self, percent: float | None) -> Iterator[None]:
        """Have another percent within a block. Blocks nest, and end in any order on any thread."""
        override = Override(self._clock(), checked_percent(percent), pause=False)
        with self._overridden(override):
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Have no automatic collection within a block, but those of the memory limit.

        `collect()` still collects. A pause that lasts too long is logged, while it lasts.
        """
        override = Override(self._clock(), None, pause=True)
        with self._lock:
            self._pauses += 1
        try:
            with self._overridden(override):
                yield
        finally:
            self._report_pause(override)

    @contextlib.contextmanager
    def _overridden(self, override: Override) -> Iterator[None]:
        with self._lock:
            self._overrides.add(override)
            self._apply()
        self._wake.set()  # it may have to look sooner: at a trigger, or at how long a pause lasts
        try:
            yield
        finally:
            with self._lock:
                self._overrides.remove(override)
                self._apply()
            self._wake.set()

    def stats(self) -> CollectorStats:
        """Return what has been done so far."""
        with self._lock:
            cycles = self._cycles
            return CollectorStats(
                cycles=cycles.count,
                by_reason=dict(cycles.by_reason),
                forced_calls=self._forced_calls,
                forced_shared=self._forced_shared,
                forced_over_budget=self._over_budget,
                deferred=self._deferred,
                pauses=self._pauses,
                long_pauses=self._long_pauses,
                policy_errors=self._looking.policy_errors,
                swept_bytes=cycles.swept_bytes,
                finalizers=cycles.finalizers,
                collecting_s=cycles.collecting_s,
            )

    # ---- the loop ----

    def turn(self) -> float | None:
        """Look at all triggers once and serve the first that is due. The collector's thread does this.

        Returns:
            After how many seconds to look again at the latest; 0: at once; None: when woken.
        """
        with self._lock:
            if self._closed or not self._started:
                return None
            self._apply()
            pauses, view = self._overrides.pauses(), self._looking.view()
        for pause in pauses:
            self._report_pause(pause)
        wanted = self._heap.figures().begun + 1
        due, wait_s = self._looking.who_is_due(view, self.budget, paused=bool(pauses))
        long_in_s = self._long_pause_in_s(view.now_s)
        if long_in_s is not None:
            wait_s = long_in_s if wait_s is None else min(wait_s, long_in_s)
        with self._lock:
            if self._leader is not None or self._closed:
                return wait_s  # who leads wakes the loop at the end
            unattended = self._cycles.unattended
            if unattended and due is not None and due.label in (HeapGoal.label, MemoryLimit.label):
                due = None  # it is being served
            if due is None and not unattended and not self._cycles.queued:
                return wait_s
            self._leader = threading.get_ident()
        if due is None or due.budget_bytes is None:
            self._lead(due.label if due is not None else None, wanted)
            return 0.0
        self._step(due.budget_bytes, due.label)
        return wait_s

    def _adapt(self, cycle: Cycle) -> None:
        """Sample the heap for the adaptive percent, after a cycle: at other times garbage is in it."""
        now_s, live_bytes = self._cycles.ended_s, cycle.live_after_bytes
        elapsed_s = now_s - self._sampled_s
        if self._adaptive is None or elapsed_s < _ADAPT_S:
            return
        self._base = self._adaptive.observe(elapsed_s, live_bytes - self._sampled_bytes)
        self._sampled_s, self._sampled_bytes = now_s, live_bytes

    def _long_pause_in_s(self, now_s: float) -> float | None:
        ends = [p.began_s + self._long_pause_s for p in self._overrides.pauses() if not p.reported]
        return max(min(ends) - now_s, 0.0) if ends else None

    def _report_pause(self, pause: Override) -> None:
        with self._lock:
            lasts_s = self._clock() - pause.began_s
            if pause.reported or lasts_s < self._long_pause_s:
                return
            pause.reported = True
            self._long_pauses += 1
        get_logger(_LOGGER).warning(
            "collections are paused for long", seconds=lasts_s, limit_s=self._long_pause_s
        )

    def _defer(self) -> None:
        self._deferred += 1
        self.triggers.explicit.request()

    # ---- leading ----

    def _lead(self, reason: str | None, wanted: int) -> Cycle | None:
        """Finish what was begun; run a cycle, unless for no reason, or the wanted one has begun by itself."""
        cycles = self._cycles
        try:
            if reason is None:
                cycles.finalize()
            while True:
                for cycle in cycles.finish():
                    self._record(cycle)
                if reason is None:
                    return cycles.last
                if cycles.ended >= wanted:
                    return cycles.last
                if (ran := cycles.run(reason)) is not None:
                    self._record(ran)
                    return ran
        finally:
            self._let_go()

    def _step(self, budget_bytes: int, reason: str) -> bool:
        try:
            cycle = self._cycles.step(budget_bytes, reason)
            if cycle is not None:
                self._record(cycle)
            return cycle is not None
        finally:
            self._let_go()

    def _record(self, cycle: Cycle) -> None:
        with self._lock:
            self._adapt(cycle)
            self._apply()
        self.history.append(cycle)
        self._trace(cycle)
        if self.on_cycle is not None:
            self.on_cycle(cycle)

    def _let_go(self) -> None:
        with self._lock:
            self._leader = None
            self._lock.notify_all()
        self._wake.set()

    def _tell_triggers(self, by_itself: bool) -> None:
        for trigger in self.triggers:
            if not (by_itself and isinstance(trigger, Request)):  # who asked may have done so since
                trigger.begun()

    def _apply(self) -> None:
        """Take over settings into the pacer, and what it wants into the heap."""
        pacer = self.pacer
        percent = self._overrides.percent(self._base)
        if "heap goal" not in self.triggers:  # somebody else's policy is to decide
            percent = None
        if percent != pacer.percent:
            pacer.percent = percent
        if pacer.memory_limit_bytes is not None:
            other = self._other_bytes()
            over = self._heap.figures().live_bytes + other - pacer.memory_limit_bytes
            pacer.set_other(other, max(over, 0))
        self._set_goal()

    def _lend_core(self, count: int) -> None:
        """Have so many more, or fewer, threads wait for a cycle: each leaves its core to the marker."""
        self._waiting += count
        self._set_goal()

    def _set_goal(self) -> None:
        pacer = self.pacer
        background = pacer.workers.background(pacer.cores) + self._waiting
        self._heap.set_goal(
            pacer.goal_bytes,
            pacer.trigger_bytes,
            pacer.assist_ratio,
            min(background, pacer.cores),
            limited=pacer.limited,
            as_of=self._cycles.as_of,
            by_itself=pacer.by_itself if self._started and not self._closed else None,
        )


def _wait_for_triggers(collector: weakref.ReferenceType[Collector], wake: threading.Event) -> None:
    """Give the collector its turns until it is closed or gone; between them, hold nothing of it."""
    wait_s: float | None = 0.0
    while True:
        wake.wait(wait_s)
        wake.clear()
        alive = collector()
        if alive is None or alive.closed:
            return
        try:
            wait_s = alive.turn()
        except Exception:  # noqa: BLE001 - no error of one cycle may end collecting
            get_logger(_LOGGER).exception("a collection failed")
            wait_s = _AFTER_FAILURE_S
        del alive
