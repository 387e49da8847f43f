"""Threads that collect, pause and set percents at once, over a heap in its own time."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import Background, wait_until
from helpers.simheap import SimHeap

from sandhost.gc.collector import Collector
from sandhost.gc.guards import ForcedBudget
from sandhost.gc.pacer import Pacer

THREADS, ROUNDS = 8, 60


class Patient(SimHeap):
    """A heap whose cycles last until all of a burst have called."""

    collector: Collector
    expected = 0

    def run_cycle_async(self) -> bool:
        began = super().run_cycle_async()
        wait_until(lambda: self.collector.stats().forced_calls >= self.expected)
        return began


def test_every_burst_runs_at_most_two_cycles() -> None:
    heap = Patient(cores=4)
    for _ in range(500):
        heap.hold(4096)
    collector = Collector(
        heap, Pacer(cores=4), budget=ForcedBudget(10**6), trace=lambda _: None, clock=heap.clock
    )
    collector.start()
    heap.collector = collector
    together = threading.Barrier(THREADS)
    before = [0]

    def burst() -> None:
        try:
            for _ in range(ROUNDS):
                if together.wait() == 0:
                    before[0] = heap.cycles
                    heap.expected += THREADS
                together.wait()
                ended = collector.stats().cycles
                cycle = collector.collect()
                assert cycle is not None
                assert cycle.number > ended
                together.wait()
                assert 1 <= heap.cycles - before[0] <= 2
        except BaseException:
            together.abort()
            raise

    for thread in [Background(burst) for _ in range(THREADS)]:
        thread.result()
    collector.close()
    stats = collector.stats()
    assert stats.cycles == heap.cycles
    assert stats.forced_calls == THREADS * ROUNDS
    assert stats.forced_shared + stats.by_reason["explicit"] == stats.forced_calls


def test_settings_come_back_whatever_threads_do() -> None:
    heap = SimHeap(cores=4)
    collector = Collector(
        heap, Pacer(cores=4), budget=ForcedBudget(10**6), trace=lambda _: None, clock=heap.clock
    )
    collector.start()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(200):
            kind = chance.randrange(4)
            try:
                if kind == 0:
                    with collector.paused():
                        assert collector.percent is None
                elif kind == 1:
                    with collector.percent_set(chance.randrange(50, 400)):
                        raise ValueError
                elif kind == 2:
                    collector.collect()
                else:
                    collector.triggers.pressure.request()
            except ValueError:
                pass

    for thread in [Background(work, seed) for seed in range(THREADS)]:
        thread.result()
    collector.close()
    assert collector.percent == collector.pacer.percent == 100
    figures = heap.figures()
    assert collector.stats().cycles == figures.cycles
    assert figures.phase == "idle"
