"""The pacer: numbers of one cycle in, goal, trigger and effort of the next one out.

It decides when a cycle begins, so that it ends as the heap reaches its goal, with a quarter of the
cores marking and no guest made to help:

    start_cycle ──► revise, revise, … ──► end_cycle ──► goal, trigger ──► (allocation) ──► start_cycle

The arithmetic is that of Go's current pacer (runtime/mgcpacer.go, 1.27); where it differs, RATIONALE.md
says why. It has no clock and no heap: whoever drives it says how much time passed and what is live.
"""

from __future__ import annotations

from collections import deque

from ..errors import ConfigError
from ..limits import UNLIMITED
from . import effort, goals
from .effort import GOAL_UTILIZATION, Workers
from .goals import MINIMUM_HEAP_BYTES, Plan
from .limiter import CpuLimiter

__all__ = ["Pacer", "checked_percent"]

_REMEMBERED = 4


class Pacer:
    """Paces collections of one heap. Sizes in bytes, times in seconds. Not for several threads at once.

    Args:
        cores: processors that the program may use, 1 or more.
        percent: growth between collections, in percent of what the last one left; None: only the
            memory limit asks for a collection.
        memory_limit_bytes: soft limit of the heap and of `other_bytes` together; None: none.
        minimum_heap_bytes: no goal is below this (at percent 100; in proportion at others).
        globals_bytes: roots of known size, all of which every cycle scans; see `set_globals`.

    Raises:
        ConfigError: a value cannot be meant.
    """

    def __init__(
        self,
        *,
        cores: int = 1,
        percent: float | None = 100,
        memory_limit_bytes: int | None = None,
        minimum_heap_bytes: int = MINIMUM_HEAP_BYTES,
        globals_bytes: int = 0,
    ) -> None:
        if not isinstance(cores, int) or cores < 1:
            raise ConfigError(f"cores is {cores!r}; give 1 or more")
        for what, size in (
            ("memory_limit_bytes", memory_limit_bytes or 0),
            ("minimum_heap_bytes", minimum_heap_bytes),
            ("globals_bytes", globals_bytes),
        ):
            if size < 0:
                raise ConfigError(f"{what} is {size!r}; give 0 or more")
        self.cores = cores
        self.limiter = CpuLimiter(cores)
        self.workers: Workers = effort.workers(cores)
        """Who marks; of the running cycle, or what the next one will have."""
        self.live_bytes = 0
        self.marked_bytes = 0
        """What the last cycle left."""
        self.cons_mark = 0.0
        """Bytes allocated to bytes scanned in the same core time: the largest of the last five cycles."""
        self._percent = checked_percent(percent)
        self._memory_limit_bytes = memory_limit_bytes
        self._minimum_heap_bytes = minimum_heap_bytes
        self._globals_bytes = globals_bytes
        self._other_bytes = self._over_bytes = 0
        self._past_cons_mark: deque[float] = deque([0.0] * _REMEMBERED, maxlen=_REMEMBERED)
        self._last_scan_bytes = self._last_roots_bytes = 0
        self._scan_bytes = self._roots_bytes = 0  # scanned by the running cycle so far
        self._scannable_bytes = self._roots_worst_bytes = 0
        self._triggered_bytes: int | None = None  # None: no cycle runs
        self._unswept_from_bytes: int | None = None
        self._assist_ratio = 0.0
        self._commit()

    # ---- what comes out ----

    @property
    def goal_bytes(self) -> int:
        """The heap size at which the cycle should be done; 2**64 - 1: no cycle is needed."""
        return self._plan.goal_bytes

    @property
    def trigger_bytes(self) -> int:
        """The heap size at which it should begin; at most the goal."""
        return self._plan.trigger_bytes

    @property
    def limited(self) -> bool:
        """Whether the memory limit sets the goal."""
        return self._plan.limited

    @property
    def assist_ratio(self) -> float:
        """Bytes to scan for each byte allocated; 0 between cycles and while the CPU limiter is full."""
        return 0.0 if self.limiter.limiting else self._assist_ratio

    @property
    def runway_bytes(self) -> int:
        """What will be allocated while the next cycle marks, as far as the last ones tell."""
        return int(self._runway_bytes)

    @property
    def collecting(self) -> bool:
        """Whether a cycle runs."""
        return self._triggered_bytes is not None

    @property
    def by_itself(self) -> tuple[float | None, int, int]:
        """What a heap goes by that cannot ask: percent, smallest goal, largest goal; see `Heap.set_goal`."""
        percent = self._percent
        return (
            percent,
            0 if percent is None else int(self._minimum_heap_bytes * percent // 100),
            goals.limit_goal(self._memory_limit_bytes, 0, self._other_bytes, self._over_bytes),
        )

    def limit_plan(self) -> Plan:
        """Return goal and trigger as the memory limit alone would have them."""
        return self._planned(UNLIMITED)

    # ---- settings: they take effect at once, in a running cycle too ----

    @property
    def percent(self) -> float | None:
        """Growth between collections in percent; None: off."""
        return self._percent

    @percent.setter
    def percent(self, percent: float | None) -> None:
        self._percent = checked_percent(percent)
        self._commit()

    @property
    def memory_limit_bytes(self) -> int | None:
        """Soft limit of the heap and all else that counts against it; None: none."""
        return self._memory_limit_bytes

    @memory_limit_bytes.setter
    def memory_limit_bytes(self, limit_bytes: int | None) -> None:
        self._memory_limit_bytes = limit_bytes
        self._replan()

    @property
    def globals_bytes(self) -> int:
        """Roots of known size."""
        return self._globals_bytes

    def set_globals(self, globals_bytes: int) -> None:
        """Say how large the roots of known size are now; the goal counts them from the next cycle on."""
        self._globals_bytes = globals_bytes
        self._replan()

    def set_other(self, other_bytes: int, over_bytes: int = 0) -> None:
        """Say what else counts against the memory limit, and by how much the whole exceeds it."""
        self._other_bytes, self._over_bytes = other_bytes, over_bytes
        self._replan()

    # ---- what goes in ----

    def start_cycle(
        self,
        live_bytes: int,
        *,
        scannable_bytes: int | None = None,
        roots_worst_bytes: int | None = None,
        periodic: bool = False,
    ) -> None:
        """A cycle begins.

        Args:
            live_bytes: the heap's size: what the last cycle left and what was allocated since.
            scannable_bytes: of these, the most that there could be to scan; None: in proportion to
                the last cycle, and in the first all of it.
            roots_worst_bytes: the most that roots may be, globals left out; None: as last time.
            periodic: because time passed, not because the heap grew.
        """
        self.workers = effort.workers(self.cores, periodic=periodic)
        self.live_bytes = self._triggered_bytes = live_bytes
        self._scan_bytes = self._roots_bytes = 0
        if scannable_bytes is None:
            last, marked = self._last_scan_bytes, self.marked_bytes
            scannable_bytes = live_bytes * last // marked if marked else live_bytes
        self._scannable_bytes = scannable_bytes
        self._roots_worst_bytes = (
            self._last_roots_bytes if roots_worst_bytes is None else roots_worst_bytes
        )
        self._replan()

    def revise(
        self,
        live_bytes: int,
        scan_work_bytes: int,
        roots_bytes: int = 0,
        *,
        scannable_bytes: int | None = None,
    ) -> float:
        """Say how far the cycle is; return the assist ratio from now on.

        Args:
            live_bytes: the heap's size.
            scan_work_bytes: cells that this cycle has scanned so far.
            roots_bytes: roots, globals among them, that it has scanned so far.
            scannable_bytes: as for `start_cycle`; None: unchanged.
        """
        self.live_bytes = live_bytes
        self._scan_bytes, self._roots_bytes = scan_work_bytes, roots_bytes
        if scannable_bytes is not None:
            self._scannable_bytes = scannable_bytes
        self._replan()
        return self.assist_ratio

    def end_cycle(
        self,
        marked_bytes: int,
        utilization: float = GOAL_UTILIZATION,
        idle_utilization: float = 0.0,
        *,
        swept: bool = True,
    ) -> None:
        """The cycle has marked everything, and the last `revise` said how much that was.

        Args:
            marked_bytes: what it keeps; the next goal is computed from it.
            utilization: share of all cores' time that marking took, in the background and by
                allocating guests, from start to end.
            idle_utilization: the same of cores that had nothing else to do.
            swept: False while the heap still sweeps; `finish_sweep` says when it is done.
        """
        if self._triggered_bytes is None:
            raise RuntimeError("end_cycle without start_cycle")
        allocated_bytes = self.live_bytes - self._triggered_bytes
        work_bytes = self._scan_bytes + self._roots_bytes
        if allocated_bytes > 0 and work_bytes > 0:  # else the cycle says nothing about either speed
            now = effort.cons_mark(allocated_bytes, work_bytes, utilization, idle_utilization)
            # The largest of the last ones: beginning early costs a little, assists cost guests.
            self.cons_mark = max(now, *self._past_cons_mark)
            self._past_cons_mark.append(now)
        self.live_bytes = self.marked_bytes = marked_bytes
        self._last_scan_bytes = self._scan_bytes
        self._last_roots_bytes = max(self._roots_bytes - self._globals_bytes, 0)
        self._triggered_bytes = None
        self._unswept_from_bytes = None if swept else marked_bytes
        self._commit()

    def finish_sweep(self) -> None:
        """The heap has given back all that the last cycle did not mark."""
        self._unswept_from_bytes = None
        self._replan()

    def elapse(self, seconds: float, *, assist_s: float = 0.0, idle_s: float = 0.0) -> None:
        """Say that time passed, for the CPU limiter; see `CpuLimiter.elapse`."""
        self.limiter.elapse(seconds, assist_s=assist_s, idle_s=idle_s, collecting=self.collecting)

    # ---- the arithmetic put together ----

    @property
    def _expected_bytes(self) -> int:
        return self._last_scan_bytes + self._last_roots_bytes + self._globals_bytes

    def _commit(self) -> None:
        """Take over what holds until the next cycle ends: the percent's goal and the runway."""
        roots = self._last_roots_bytes + self._globals_bytes
        self._percent_goal_bytes = goals.percent_goal(
            self.marked_bytes, roots, self._percent, self._minimum_heap_bytes
        )
        self._runway_bytes = effort.runway(self.cons_mark, self._expected_bytes)
        self._replan()

    def _replan(self) -> None:
        """Follow what may change at any time: the limit, and a running cycle."""
        self._plan = self._planned(self._percent_goal_bytes)
        if self._triggered_bytes is None:
            self._assist_ratio = 0.0
            return
        limit = self._memory_limit_bytes
        self._assist_ratio = effort.assist_ratio(
            goal_bytes=self.goal_bytes,
            triggered_bytes=self._triggered_bytes,
            live_bytes=self.live_bytes,
            work_bytes=self._scan_bytes + self._roots_bytes,
            expected_bytes=self._expected_bytes,
            worst_bytes=self._scannable_bytes + self._roots_worst_bytes + self._globals_bytes,
            percent=self._percent,
            ceiling_bytes=UNLIMITED if limit is None else limit - self._other_bytes,
        )

    def _planned(self, percent_goal_bytes: int) -> Plan:
        return goals.plan(
            percent_goal_bytes=percent_goal_bytes,
            limit_goal_bytes=goals.limit_goal(
                self._memory_limit_bytes, self.marked_bytes, self._other_bytes, self._over_bytes
            ),
            marked_bytes=self.marked_bytes,
            runway_bytes=self._runway_bytes,
            smallest_window_bytes=self._minimum_heap_bytes,
            triggered_bytes=self._triggered_bytes,
            unswept_from_bytes=self._unswept_from_bytes,
        )


def checked_percent(percent: float | None) -> float | None:
    """Return a percent that can be meant.

    Raises:
        ConfigError: it is negative, endless or no number.
    """
    if percent is not None and not (isinstance(percent, (int, float)) and 0 <= percent < 1e9):
        raise ConfigError(f"percent is {percent!r}; give 0 or more, or None to turn it off")
    return percent
