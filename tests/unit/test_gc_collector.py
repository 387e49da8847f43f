"""The control loop over a simulated heap: who is served, what comes back, what is reported."""

from __future__ import annotations

import gc
import logging
import re
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import Background, wait_until
from helpers.simheap import Load, SimHeap, simulate

import sandhost
from sandhost.gc.collector import Collector
from sandhost.gc.guards import ForcedBudget
from sandhost.gc.pacer import Pacer
from sandhost.gc.trace import Cycle, line
from sandhost.gc.triggers import HeapGoal, Period, Policy, Triggers, View
from sandhost.limits import UNLIMITED

KIB, MIB = 1 << 10, 1 << 20
QUIET = Load(lambda _: 0, lambda _: 10 * MIB)
STEADY = Load(lambda _: 50e6, lambda _: 10 * MIB)


class Bench:
    """A collector over a heap, both in simulated time unless told otherwise."""

    def __init__(
        self, load: Load = QUIET, *, heap: SimHeap | None = None, **options: object
    ) -> None:
        self.cycles: list[Cycle] = []
        self.heap = heap or SimHeap(load, cores=4)
        pacer = options.pop("pacer", None) or Pacer(cores=4)
        options = {"clock": self.heap.clock, "thread": None, "trace": self.cycles.append, **options}
        self.gc = Collector(self.heap, pacer, **options)  # type: ignore[arg-type]

    def started(self) -> Bench:
        self.gc.start()
        self.gc.turn()
        return self

    def reasons(self) -> list[str]:
        return [cycle.reason for cycle in self.cycles]


@pytest.fixture
def bench() -> Bench:
    return Bench().started()


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


# ---- single flight ----


class Gated(SimHeap):
    """A heap whose cycles wait for a gate, so that callers can be lined up beside a running one."""

    def __init__(self) -> None:
        super().__init__(QUIET, cores=4)
        self.gate = threading.Semaphore(0)
        self.asked = 0

    def run_cycle_async(self) -> bool:
        self.asked += 1
        began = super().run_cycle_async()
        assert self.gate.acquire(timeout=30)
        return began


@pytest.mark.parametrize("callers", [1, 2, 40])
def test_a_burst_of_callers_shares_the_next_cycle(callers: int) -> None:
    heap = Gated()
    collector = Bench(heap=heap).started().gc
    first = Background(collector.collect)
    wait_until(lambda: heap.asked == 1)
    others = [Background(collector.collect) for _ in range(callers)]
    wait_until(lambda: collector.stats().forced_calls == callers + 1)
    heap.gate.release()
    assert first.result().number == 1
    wait_until(lambda: heap.asked == 2)
    assert not any(other.done for other in others)  # the running cycle began before they called
    heap.gate.release()
    assert {other.result().number for other in others} == {2}
    stats = collector.stats()
    assert (stats.cycles, heap.cycles, stats.forced_shared) == (2, 2, callers - 1)


def test_who_waits_for_a_cycle_leaves_its_core_to_it() -> None:
    heap = Gated()
    bench = Bench(heap=heap).started()
    assert heap.background == 1  # a quarter of four
    callers = [Background(bench.gc.collect) for _ in range(2)]
    wait_until(lambda: bench.gc.stats().forced_calls == 2)
    assert heap.background == 3
    heap.gate.release(2)
    for caller in callers:
        caller.result()
    assert heap.background == 1


def test_each_caller_gets_a_cycle_that_began_after_its_call(bench: Bench) -> None:
    for number in range(1, 6):
        cycle = bench.gc.collect()
        assert cycle is not None
        assert cycle.number == number
        assert cycle.forced


def test_the_next_goal_counts_what_was_born_while_a_cycle_ran() -> None:
    bench = Bench(STEADY)
    simulate(bench.heap, bench.gc, 3.0)
    last = bench.gc.last
    assert last is not None
    assert last.live_after_bytes > last.marked_bytes
    assert bench.gc.pacer.marked_bytes == last.live_after_bytes


def test_time_spent_on_assists_reaches_the_cpu_limiter(bench: Bench) -> None:
    limiter = bench.gc.pacer.limiter
    bench.gc.collect()
    assert limiter.fill_s < 0.01
    bench.heap.assist_ns += int(3e9)  # core time that guests spent meanwhile
    bench.gc.collect()
    assert limiter.fill_s == pytest.approx(3, abs=0.01)
    bench.heap.now_s += 0.5  # the program's, on four cores
    bench.gc.collect()
    assert limiter.fill_s == pytest.approx(1, abs=0.02)


def test_what_was_dropped_before_the_call_is_gone_after_it(bench: Bench) -> None:
    heap = bench.heap
    cells = [heap.hold(100 * KIB) for _ in range(16)]
    bench.gc.collect()
    assert not any(cell.freed for cell in cells)
    heap.let_go()
    allocated = heap.figures().alloc_bytes
    cycle = bench.gc.collect()
    assert [cell.freed for cell in cells] == [True] * 8 + [False] * 8
    assert cycle is not None
    assert cycle.swept_bytes == 800 * KIB
    figures = heap.figures()
    assert figures.alloc_bytes == allocated  # it only grows
    assert figures.live_bytes == 800 * KIB


def test_a_leader_that_is_interrupted_leaves_its_cycle_to_the_next() -> None:
    class Interrupted(SimHeap):
        interrupt = True

        def wait(self, timeout_s: float) -> bool:
            if self.interrupt:
                self.interrupt = False
                raise KeyboardInterrupt
            return super().wait(timeout_s)

    bench = Bench(heap=Interrupted(QUIET)).started()
    with pytest.raises(KeyboardInterrupt):
        bench.gc.collect()
    assert bench.heap.running
    cycle = bench.gc.collect()
    assert cycle is not None
    assert cycle.number == 2  # the abandoned one began before the call
    bench.heap.interrupt = True  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        bench.gc.collect()
    bench.gc.turn()  # the loop sees it through
    assert not bench.heap.running
    assert bench.gc.stats().cycles == 3


def test_a_cycle_that_cannot_start_is_raised_and_forgotten() -> None:
    class Failing(SimHeap):
        fail = True

        def run_cycle_async(self) -> bool:
            if self.fail:
                raise sandhost.NativeError(12, "starting the marker thread")
            return super().run_cycle_async()

    bench = Bench(heap=Failing(QUIET)).started()
    with pytest.raises(sandhost.NativeError):
        bench.gc.collect()
    bench.heap.fail = False  # type: ignore[attr-defined]
    cycle = bench.gc.collect()
    assert cycle is not None
    assert cycle.number == bench.gc.stats().cycles == bench.heap.cycles == len(bench.cycles) == 1


def test_a_finalizer_that_collects_is_put_off_not_locked_up(bench: Bench) -> None:
    seen: list[object] = []
    cell = bench.heap.alloc(64)
    cell.finalizer = lambda: seen.append(bench.gc.collect())
    bench.gc.collect()
    assert seen == [None]
    assert bench.gc.stats().finalizers == 1
    assert bench.gc.stats().deferred == 1
    bench.gc.turn()
    assert bench.reasons() == ["explicit", "explicit"]


# ---- cycles that begin by themselves ----


def test_cycles_that_began_while_nobody_looked_are_recorded_as_they_were() -> None:
    bench = Bench(STEADY).started()
    bench.heap.run(3.0)  # no turn: the collector's thread does not come
    unseen = bench.heap.cycles
    assert unseen >= 3
    assert bench.cycles == []
    bench.gc.turn()
    while bench.heap.records:
        bench.gc.turn()
    assert [cycle.number for cycle in bench.cycles] == list(range(1, len(bench.cycles) + 1))
    assert len(bench.cycles) in (unseen, unseen + 1)  # one may have been running
    assert set(bench.reasons()) == {"heap goal"}
    stats = bench.gc.stats()
    assert stats.by_reason == {"heap goal": len(bench.cycles)}
    assert stats.cycles == bench.heap.cycles == len(bench.cycles)
    figures = bench.heap.figures()
    assert stats.swept_bytes == sum(cycle.swept_bytes for cycle in bench.cycles)
    assert stats.swept_bytes == figures.free_bytes
    total_s = (figures.assist_ns + figures.mark_ns + figures.sweep_ns) / 1e9
    assert stats.collecting_s == pytest.approx(total_s)
    for before, after in zip(bench.cycles, bench.cycles[1:]):
        assert before.began_s < after.began_s
        assert after.live_before_bytes >= before.live_after_bytes
    assert bench.gc.pacer.marked_bytes == bench.cycles[-1].live_after_bytes


def test_collect_is_served_by_no_cycle_that_began_before_the_call() -> None:
    bench = Bench(STEADY).started()
    while not bench.heap.running:
        bench.heap.run(0.001)
    bench.heap.load = None
    cell = bench.heap.roots[0].root
    bench.heap.roots.clear()
    cycle = bench.gc.collect()
    assert cycle is not None
    assert cycle.number == 2
    assert bench.reasons() == ["heap goal", "explicit"]
    assert cell.freed


def test_collect_is_served_by_one_that_begins_by_itself_after_the_call() -> None:
    class Sudden(SimHeap):
        """A heap that passes its trigger just before it is asked."""

        sudden = True

        def run_cycle_async(self) -> bool:
            if self.sudden:
                self.sudden = False
                self.alloc(5 * MIB)
            return super().run_cycle_async()

    bench = Bench(heap=Sudden(cores=4)).started()
    cycle = bench.gc.collect()
    assert cycle is not None
    assert (cycle.number, cycle.reason) == (1, "heap goal")
    stats = bench.gc.stats()
    assert (stats.cycles, stats.forced_calls, stats.forced_shared) == (1, 1, 1)


def test_a_request_is_not_answered_by_a_cycle_that_may_have_begun_before() -> None:
    bench = Bench(STEADY).started()
    while not bench.heap.running:
        bench.heap.run(0.001)
    bench.gc.triggers.pressure.request()
    bench.gc.turn()
    while "pressure" not in bench.reasons():
        assert bench.gc.turn() == 0
    assert bench.reasons()[0] == "heap goal"


def test_no_cycle_begins_by_itself_where_the_user_decides() -> None:
    bench = Bench(STEADY).started()
    bench.gc.triggers.remove("heap goal")
    bench.gc.turn()
    bench.heap.run(1.0)
    assert bench.heap.cycles == 0
    bench.gc.triggers.add(HeapGoal())
    bench.gc.turn()
    assert bench.reasons()[0] == "heap goal"
    bench.gc.close()
    ended = bench.heap.cycles
    bench.heap.run(2.0)
    assert bench.heap.cycles == ended == len(bench.cycles)


def test_steps_leave_a_cycle_that_began_by_itself_to_the_heap() -> None:
    bench = Bench(STEADY).started()
    while not bench.heap.running:
        bench.heap.run(0.001)
    assert bench.gc.step(1) is False
    while not bench.gc.step(1):
        bench.heap.run(0.001)
    assert bench.reasons() == ["heap goal"]


# ---- start and end ----


def test_nothing_is_collected_while_the_host_starts() -> None:
    bench = Bench(STEADY, pacer=Pacer(cores=4, minimum_heap_bytes=1 * MIB))
    bench.heap.run(2.0)
    assert bench.gc.turn() is None
    assert bench.gc.collect() is None
    assert bench.heap.cycles == 0
    bench.gc.start()
    bench.gc.turn()
    assert bench.reasons() == ["heap goal", "explicit"]


def test_close_ends_collecting_and_says_so() -> None:
    bench = Bench(STEADY).started()
    bench.gc.close()
    bench.gc.close()
    bench.heap.run(1.0)
    assert bench.gc.turn() is None
    with pytest.raises(sandhost.GuestClosed):
        bench.gc.collect()
    with pytest.raises(sandhost.GuestClosed):
        bench.gc.step(1000)
    assert bench.heap.cycles == 0


def test_close_waits_for_a_cycle_and_sends_waiting_callers_away() -> None:
    heap = Gated()
    collector = Bench(heap=heap).started().gc
    leader = Background(collector.collect)
    wait_until(lambda: heap.asked == 1)
    waiter = Background(collector.collect)
    wait_until(lambda: collector.stats().forced_calls == 2)
    closer = Background(collector.close)
    with pytest.raises(sandhost.GuestClosed):
        waiter.result()
    assert not closer.done
    heap.gate.release()
    closer.result()
    assert leader.result().number == 1


def test_its_thread_waits_for_triggers_and_ends_with_it() -> None:
    heap = SimHeap(cores=4)
    bench = Bench(heap=heap, thread=thread_of(threads := []))
    bench.gc.start()
    heap.alloc(5 * MIB)  # the minimum heap is 4 MiB
    wait_until(lambda: bench.cycles)
    bench.gc.triggers.pressure.request()
    wait_until(lambda: "pressure" in bench.reasons())
    bench.gc.close()
    assert not threads[0].is_alive()


def test_its_thread_ends_when_it_is_dropped() -> None:
    bench = Bench(thread=thread_of(threads := []))
    bench.gc.start()
    gone = weakref.ref(bench.gc)
    del bench
    wait_until(lambda: gc.collect() >= 0 and gone() is None)
    threads[0].join(30)
    assert not threads[0].is_alive()


def test_an_error_of_one_cycle_does_not_end_collecting(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(SimHeap):
        failures = 1

        def run_cycle_async(self) -> bool:
            if self.failures:
                self.failures -= 1
                raise sandhost.NativeError(12, "starting the marker thread")
            return super().run_cycle_async()

    bench = Bench(heap=Failing(cores=4), thread=thread_of([]))
    bench.gc.start()
    bench.gc.triggers.pressure.request()
    wait_until(lambda: bench.cycles)
    bench.gc.close()
    assert "a collection failed" in events(caplog)


def thread_of(started: list[threading.Thread]) -> Callable[[Callable[[], None]], threading.Thread]:
    def start(run: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=run, daemon=True)
        started.append(thread)
        thread.start()
        return thread

    return start


# ---- the budget of forced collections ----


def test_forcing_too_often_is_counted_and_warned_of_once_a_period(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(budget=ForcedBudget(5, "10 s")).started()
    for _ in range(20):
        assert bench.gc.collect() is not None
    stats = bench.gc.stats()
    assert (stats.cycles, stats.forced_over_budget) == (20, 15)
    assert len([e for e in events(caplog) if "forced too often" in e]) == 1
    bench.heap.now_s += 10
    for _ in range(6):
        bench.gc.collect()
    assert bench.gc.stats().forced_over_budget == 16
    assert len([e for e in events(caplog) if "forced too often" in e]) == 2


def test_callers_that_share_a_cycle_take_one_out_of_the_budget() -> None:
    heap = Gated()
    collector = Bench(heap=heap, budget=ForcedBudget(2, 3600)).started().gc
    callers = [Background(collector.collect) for _ in range(30)]
    wait_until(lambda: collector.stats().forced_calls == 30)
    heap.gate.release(2)
    assert all(caller.result() is not None for caller in callers)
    assert collector.stats().forced_over_budget == 0


def test_a_budget_that_defers_runs_them_when_there_is_room() -> None:
    bench = Bench(budget=ForcedBudget(2, "10 s", defer=True)).started()
    results = [bench.gc.collect() is not None for _ in range(10)]
    assert results == [True, True] + [False] * 8
    assert bench.gc.turn() == pytest.approx(5.0, abs=0.01)  # one each 5 s
    assert bench.gc.stats().cycles == 2
    bench.heap.now_s += 5.0
    bench.gc.turn()
    assert bench.gc.stats().cycles == 3
    assert bench.gc.stats().deferred == 8
    bench.gc.turn()
    assert bench.gc.stats().cycles == 3  # one answers them all


@pytest.mark.parametrize("wrong", [(0, 1), (1, 0)])
def test_a_budget_of_nothing_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(sandhost.ConfigError):
        ForcedBudget(*wrong)


# ---- pauses and percents that come back ----


def test_no_automatic_collection_within_a_pause_and_all_of_them_after() -> None:
    bench = Bench(STEADY)
    with bench.gc.paused():
        simulate(bench.heap, bench.gc, 3.0)
        bench.gc.triggers.pressure.request()
        bench.gc.turn()
        assert bench.cycles == []
        assert bench.gc.percent is None
        assert bench.heap.goal == UNLIMITED
        assert bench.gc.collect() is not None  # who asks is served
    assert bench.gc.percent == 100
    bench.cycles.clear()
    simulate(bench.heap, bench.gc, 3.0)
    assert "heap goal" in bench.reasons()


def test_a_pause_does_not_pass_the_memory_limit() -> None:
    bench = Bench(STEADY, pacer=Pacer(cores=4, memory_limit_bytes=40 * MIB))
    with bench.gc.paused():
        simulate(bench.heap, bench.gc, 5.0)
    assert set(bench.reasons()) == {"limit"}
    assert bench.heap.peak <= 40 * MIB * 1.03


def test_pauses_and_percents_nest_and_survive_errors(bench: Bench) -> None:
    collector = bench.gc
    with pytest.raises(ZeroDivisionError), collector.percent_set(50):
        assert collector.percent == 50
        with pytest.raises(KeyError), collector.paused():
            with collector.percent_set(300), collector.paused():
                assert collector.percent is None
            assert collector.percent is None
            raise KeyError
        assert collector.percent == 50
        with collector.percent_set(None):
            assert collector.percent is None
        assert collector.pacer.percent == 50
        raise ZeroDivisionError
    assert collector.percent == collector.pacer.percent == 100
    assert collector.stats().pauses == 2


def test_blocks_may_end_in_any_order(bench: Bench) -> None:
    collector = bench.gc
    a, b, pause = collector.percent_set(50), collector.percent_set(70), collector.paused()
    a.__enter__()
    pause.__enter__()
    b.__enter__()
    assert collector.percent is None
    pause.__exit__(None, None, None)
    assert collector.percent == 70
    a.__exit__(None, None, None)
    assert collector.percent == 70
    collector.percent = 90  # for after
    assert collector.percent == 70
    b.__exit__(None, None, None)
    assert collector.percent == collector.pacer.percent == 90


def test_a_percent_that_cannot_be_meant_changes_nothing(bench: Bench) -> None:
    with pytest.raises(sandhost.ConfigError), bench.gc.percent_set(-1):
        pass
    with pytest.raises(sandhost.ConfigError):
        bench.gc.percent = -1
    assert bench.gc.percent == 100


def test_a_long_pause_is_reported_while_it_lasts_and_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(long_pause_s=2.0).started()
    with bench.gc.paused():
        wait_s = bench.gc.turn()
        assert wait_s == pytest.approx(2.0)
        bench.heap.now_s += 2.0
        bench.gc.turn()
        assert bench.gc.stats().long_pauses == 1
        bench.heap.now_s += 2.0
        bench.gc.turn()
    assert bench.gc.stats().long_pauses == 1
    assert len([e for e in events(caplog) if "paused for long" in e]) == 1
    with bench.gc.paused():
        bench.heap.now_s += 3.0  # nobody looked meanwhile
    assert bench.gc.stats().long_pauses == 2
    with bench.gc.paused():
        bench.heap.now_s += 1.0
    assert bench.gc.stats().long_pauses == 2


# ---- triggers ----


def test_a_period_collects_what_a_quiet_program_dropped(bench: Bench) -> None:
    assert bench.gc.turn() == pytest.approx(120)
    bench.heap.now_s += 120
    bench.gc.turn()
    assert bench.cycles == []  # nothing was ever allocated
    bench.heap.alloc(1000)
    bench.heap.now_s += 120
    bench.gc.turn()
    assert bench.reasons() == ["period"]
    assert bench.heap.live == 0


def test_a_policy_in_place_of_the_heap_goal_decides_alone() -> None:
    seen: list[View] = []

    def decide(view: View) -> bool:
        seen.append(view)
        return view.live_bytes >= 50 * MIB

    bench = Bench(STEADY)
    bench.gc.triggers.remove("heap goal")
    bench.gc.triggers.add(Policy("mine", decide, every="10 ms"))
    simulate(bench.heap, bench.gc, 3.0)
    assert set(bench.reasons()) == {"mine"}
    assert all(c.live_before_bytes == pytest.approx(50 * MIB, rel=0.1) for c in bench.cycles)
    assert bench.gc.stats().by_reason == {"mine": len(bench.cycles)}
    assert seen[-1].cycles > 0


def test_a_policy_that_never_collects_is_bounded_by_the_limit() -> None:
    bench = Bench(STEADY, pacer=Pacer(cores=4, memory_limit_bytes=60 * MIB))
    bench.gc.triggers.remove("heap goal")
    bench.gc.triggers.add(Policy("never", lambda _: False))
    simulate(bench.heap, bench.gc, 5.0)
    assert set(bench.reasons()) == {"limit"}
    assert bench.heap.peak <= 60 * MIB * 1.03
    for label in ("limit", "explicit"):
        with pytest.raises(sandhost.ConfigError, match="cannot be removed"):
            bench.gc.triggers.remove(label)


def test_a_policy_says_how_much_and_a_cycle_is_done_in_pieces() -> None:
    bench = Bench(STEADY)
    bench.gc.triggers.remove("heap goal")
    bench.gc.triggers.add(
        Policy("a little", lambda v: 100 * KIB * (v.live_bytes > 30 * MIB), 0.001)
    )
    simulate(bench.heap, bench.gc, 3.0)
    assert len(bench.cycles) >= 2
    assert set(bench.reasons()) == {"a little"}
    assert all(cycle.duration_s > 0.05 for cycle in bench.cycles)  # some hundred pieces
    figures = bench.heap.figures()
    assert figures.live_bytes == figures.alloc_bytes - figures.free_bytes


def test_collect_finishes_what_was_begun_in_steps_and_then_runs_its_own(bench: Bench) -> None:
    cell = bench.heap.hold(64 * KIB)
    assert bench.gc.step(1) is False
    assert bench.heap.phase == "mark"
    bench.heap.roots.clear()  # dropped after that cycle had seen it
    cycle = bench.gc.collect()
    assert cycle is not None
    assert cycle.number == 2
    assert cell.freed
    assert bench.reasons() == ["step", "explicit"]
    while not bench.gc.step(1):
        pass
    assert bench.heap.phase == "idle"
    assert bench.gc.stats().cycles == 3


def test_roots_are_told_apart_from_cells() -> None:
    bench = Bench(heap=SimHeap(QUIET, roots_bytes=100 * KIB)).started()
    bench.heap.hold(300 * KIB)
    pacer = bench.gc.pacer
    for _ in range(3):
        bench.gc.step(60 * KIB)
        told = (pacer._roots_bytes, pacer._scan_bytes)
        assert told == (bench.heap.roots_scanned, bench.heap.scanned)
    while not bench.gc.step(60 * KIB):
        pass
    (cycle,) = bench.cycles
    assert (cycle.roots_bytes, cycle.scanned_bytes) == (100 * KIB, 300 * KIB)


def test_a_policy_that_fails_is_removed_and_the_heap_goal_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(STEADY)
    bench.gc.triggers.remove("heap goal")
    bench.gc.triggers.add(Policy("broken", lambda _: 1 / 0))  # type: ignore[arg-type, return-value]
    simulate(bench.heap, bench.gc, 3.0)
    assert "broken" not in bench.gc.triggers
    assert "heap goal" in bench.gc.triggers
    assert set(bench.reasons()) == {"heap goal"}
    assert bench.gc.stats().policy_errors == 1
    assert any("a policy failed" in event for event in events(caplog))


def test_labels_of_triggers_are_unique_and_known() -> None:
    triggers = Triggers(period=None)
    assert [t.label for t in triggers] == ["limit", "explicit", "pressure", "heap goal"]
    with pytest.raises(sandhost.ConfigError, match="already"):
        triggers.add(HeapGoal())
    with pytest.raises(sandhost.ConfigError, match="only limit"):
        triggers.remove("period")
    triggers.add(Period("1 s"))
    assert "period" in triggers
    with pytest.raises(sandhost.ConfigError):
        Period(0)
    with pytest.raises(sandhost.ConfigError):
        Policy("x", lambda _: True, every=0)


def test_what_else_counts_against_the_limit_makes_the_heap_smaller() -> None:
    bench = Bench(
        STEADY,
        pacer=Pacer(cores=4, memory_limit_bytes=100 * MIB),
        other_bytes=lambda: 60 * MIB,
    )
    bench.gc.percent = None
    simulate(bench.heap, bench.gc, 5.0)
    assert bench.cycles
    assert bench.heap.peak <= 40 * MIB * 1.03
    bench.gc.memory_limit = None
    assert bench.heap.goal == UNLIMITED


# ---- the trace ----

GO_LINE = re.compile(
    r"gc (\d+) @([\d.]+)s (\d+)%: ([\d.]+)\+([\d.]+)\+([\d.]+) ms clock, "
    r"([\d.]+)\+([\d.]+)/([\d.]+)/([\d.]+)\+([\d.]+) ms cpu, (\d+)->(\d+)->(\d+) MB, (\d+) MB goal, "
    r"(\d+) MB stacks, (\d+) MB globals, (\d+) P( \(forced\))?"
)


def test_a_cycle_reads_like_gos_trace() -> None:
    bench = Bench(STEADY)
    simulate(bench.heap, bench.gc, 10.0)
    bench.gc.collect()
    for cycle in bench.cycles:
        match = GO_LINE.fullmatch(line(cycle))
        assert match is not None, line(cycle)
        assert int(match[1]) == cycle.number
        assert float(match[2]) == pytest.approx(cycle.began_s, abs=0.001)
        assert float(match[9]) == pytest.approx(cycle.background_s * 1e3, rel=0.06)
        assert [int(match[k]) for k in (12, 13, 14)] == [
            size >> 20
            for size in (cycle.live_before_bytes, cycle.peak_bytes, cycle.live_after_bytes)
        ]
        assert int(match[18]) == 4
        assert bool(match[19]) == (cycle.reason == "explicit")
    last = bench.cycles[-2]  # of those beside which the program allocated
    assert last.live_after_bytes > last.marked_bytes > 0
    assert bench.cycles[-1].live_before_bytes >= last.live_after_bytes
    total = sum(c.assist_s + c.background_s + c.sweep_s for c in bench.cycles)
    assert bench.cycles[-1].spent == pytest.approx(total / (4 * bench.heap.now_s), rel=0.01)


def test_the_environment_asks_for_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, printed in (("1", 1), ("0", 0), ("", 0)):
        monkeypatch.setenv("SANDHOST_GCTRACE", value)
        bench = Bench(trace=None).started()
        bench.gc.collect()
        err = capsys.readouterr().err
        assert len(err.splitlines()) == printed
        if printed:
            assert GO_LINE.fullmatch(err.strip())


def test_the_same_is_an_event_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(trace=None).started()
    bench.heap.alloc(MIB)
    bench.gc.collect()
    assert events(caplog) == []  # nobody listens
    caplog.set_level(logging.INFO, logger="sandhost.gc")
    bench.gc.collect()
    (record,) = caplog.records
    assert record.getMessage().startswith("cycle ")
    assert record.reason == "explicit"
    assert record.number == 2
    assert set(Cycle._fields) <= set(vars(record))


def test_a_trace_to_a_closed_stderr_does_not_end_collecting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SANDHOST_GCTRACE", "1")
    bench = Bench(trace=None).started()
    with open(tmp_path / "stderr", "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    assert bench.gc.collect() is not None
    monkeypatch.setattr(sys, "stderr", None)
    assert bench.gc.collect() is not None
