"""The whole loop over a simulated heap: what the pacer promises of any steady load, and of the limit.

Thousands of cycles over a real graph, in simulated time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.simheap import BLACK, Cell, Load, SimHeap, simulate

from sandhost.gc.adaptive import AdaptivePercent
from sandhost.gc.collector import Collector
from sandhost.gc.pacer import Pacer
from sandhost.gc.trace import Cycle

MIB = 1 << 20
SETTLING = 10
"""Cycles until the speeds of both sides are known."""


class Run:
    """A load, its heap, and the cycles that came of it."""

    def __init__(
        self,
        load: Load,
        *,
        cores: int = 4,
        adaptive: AdaptivePercent | None = None,
        roots_bytes: int = 0,
        **pacer: object,
    ) -> None:
        self.cycles: list[Cycle] = []
        self.heap = SimHeap(load, cores=cores, roots_bytes=roots_bytes)
        self.collector = Collector(
            self.heap,
            Pacer(cores=cores, **pacer),  # type: ignore[arg-type]
            adaptive=adaptive,
            clock=self.heap.clock,
            thread=None,
            trace=self.cycles.append,
        )
        self.peak_after_settling = 0

    def until(self, cycles: int, most_s: float = 1000.0) -> Run:
        while len(self.cycles) < cycles and self.heap.now_s < most_s:
            simulate(self.heap, self.collector, 1.0)
        assert len(self.cycles) >= cycles
        return self


def steady(rate: float, live: float, cell_bytes: int = 64 << 10) -> Load:
    return Load(lambda _: rate, lambda _: live, cell_bytes)


@pytest.mark.parametrize("cores", [1, 2, 4, 8])
@pytest.mark.parametrize("percent", [100, 200])
@pytest.mark.parametrize("rate", [20e6, 50e6, 90e6])
def test_a_steady_load_is_marked_with_a_quarter_of_the_cores_and_ends_at_its_goal(
    cores: int, percent: int, rate: float
) -> None:
    run = Run(steady(rate, 40 * MIB), cores=cores, percent=percent).until(60)
    settled = run.cycles[SETTLING:]
    mean = sum(c.utilization for c in settled) / len(settled)
    assert mean == pytest.approx(0.25, abs=0.02)
    for live, goal in run.heap.at_mark_end[SETTLING:]:
        assert live == pytest.approx(goal, rel=0.05)
    assert {c.reason for c in settled} == {"heap goal"}


def test_a_thousand_cycles_stay_where_they_are() -> None:
    run = Run(steady(60e6, 20 * MIB), roots_bytes=2 * MIB).until(1000)
    settled = run.cycles[SETTLING:]
    for first in range(0, len(settled), 100):
        part = settled[first : first + 100]
        assert sum(c.utilization for c in part) / len(part) == pytest.approx(0.25, abs=0.02)
    for live, goal in run.heap.at_mark_end[SETTLING:]:
        assert live == pytest.approx(goal, rel=0.05)
    figures = run.heap.figures()
    assert figures.live_bytes == figures.alloc_bytes - figures.free_bytes
    assert run.collector.stats().cycles == figures.cycles == len(run.cycles)


@pytest.mark.parametrize("limit", [64, 80, 128])
@pytest.mark.parametrize("rate", [20e6, 80e6])
@pytest.mark.parametrize("percent", [100, None])
def test_the_memory_limit_is_held(limit: int, rate: float, percent: int | None) -> None:
    run = Run(steady(rate, 45 * MIB), memory_limit_bytes=limit * MIB, percent=percent).until(100)
    assert run.heap.peak <= limit * MIB * 1.03
    if percent is None:
        assert {c.reason for c in run.cycles} == {"limit"}


@pytest.mark.parametrize("late_s", [0.02, 0.2, 2.0])
@pytest.mark.parametrize("rate", [20e6, 80e6])
def test_the_memory_limit_is_held_while_the_collectors_thread_is_late(
    rate: float, late_s: float
) -> None:
    run = Run(steady(rate, 45 * MIB), memory_limit_bytes=80 * MIB)
    run.collector.start()
    for _ in range(round(20 / late_s)):
        run.heap.run(late_s)
        run.collector.turn()
    assert run.heap.peak <= 80 * MIB * 1.03
    assert {c.reason for c in run.cycles[SETTLING:]} == {"limit"}
    assert len(run.cycles) == run.collector.stats().cycles > 20
    assert [c.number for c in run.cycles] == list(range(1, len(run.cycles) + 1))


@pytest.mark.parametrize("percent", [50, 100, 400])
def test_the_limit_is_held_by_loads_that_change(percent: int) -> None:
    def live(t: float) -> float:
        return (20 + 25 * (t % 4 / 4)) * MIB

    def rate(t: float) -> float:
        return 200e6 if t % 3 < 0.3 else 20e6

    run = Run(
        Load(rate, live), memory_limit_bytes=80 * MIB, percent=percent, adaptive=AdaptivePercent()
    ).until(100)
    assert run.heap.peak <= 80 * MIB * 1.03


def test_a_heap_over_its_limit_rests_between_cycles_and_does_not_assist_for_ever() -> None:
    """All of it is live: collecting cannot help, and must not take everything."""
    run = Run(steady(20e6, 60 * MIB), memory_limit_bytes=32 * MIB)
    simulate(run.heap, run.collector, 20.0)
    collecting = sum(c.duration_s for c in run.cycles if c.began_s > 5)
    assert 0 < collecting <= 0.55 * 15
    assert run.heap.alloc_bytes > 20e6 * 4 * 20 * 0.3  # the program goes on


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    rate=st.floats(5e6, 150e6),
    live=st.integers(8 * MIB, 64 * MIB),
    cores=st.integers(1, 16),
    percent=st.integers(50, 400),
    cell=st.integers(48 << 10, 128 << 10),
)
def test_any_steady_load_ends_near_its_goal_and_never_far_beyond(rate, live, cores, percent, cell):
    run = Run(steady(rate, live, cell), cores=cores, percent=percent).until(SETTLING + 10)
    for at_end, goal in run.heap.at_mark_end[SETTLING:]:
        assert at_end <= goal * 1.05
        assert at_end >= goal * 0.95 or goal <= 8 * MIB * 5  # small heaps: whole cells weigh more


def reachable(heap: SimHeap) -> set[int]:
    """Ask the graph itself, with a search that shares nothing with the collector."""
    seen: set[int] = set()
    todo = [bundle.root for bundle in heap.roots]
    while todo:
        cell = todo.pop()
        if id(cell) not in seen:
            seen.add(id(cell))
            todo += cell.edges
    return seen


def test_the_simulated_collector_frees_garbage_and_nothing_else() -> None:
    heap = SimHeap(Load(lambda _: 50e6, lambda _: 10 * MIB), cores=2)
    collector = Collector(heap, Pacer(cores=2), clock=heap.clock, thread=None, trace=lambda _: None)
    collector.start()
    for _ in range(30):
        heap.run(0.05)
        unreachable = {id(c) for c in heap.cells} - reachable(heap)
        before: list[Cell] = heap.cells
        collector.collect()
        assert all(
            id(c) not in {id(kept) for kept in heap.cells} for c in before if id(c) in unreachable
        )
        assert reachable(heap) <= {id(cell) for cell in heap.cells}
        assert not any(cell.freed for cell in heap.cells)
        assert all(cell.colour == BLACK for cell in heap.cells)


def test_the_adaptive_percent_is_short_in_bursts_and_long_in_quiet() -> None:
    def live(t: float) -> float:  # grows by 60 MB a second for 6 s, then rests
        return 20 * MIB + 60e6 * min(t, 6)

    adaptive = AdaptivePercent()
    run = Run(Load(lambda t: 30e6 if t < 6 else 20e6, live), adaptive=adaptive)
    simulate(run.heap, run.collector, 6.0)
    growing = run.collector.percent
    simulate(run.heap, run.collector, 60.0)
    quiet = run.collector.percent
    assert growing is not None
    assert quiet is not None
    assert growing <= 100
    assert quiet >= 150
