"""Builds of the package beside each other: their processes live at once, and take turns of 4 ms on one processor.

A machine changes its speed by a tenth within seconds, so two processes that run one after the other meet two machines.
Here a round gives each contender a turn of the same work, in an order that chance decides; the round's ratio counts.

Where the memory of a process happens to lie is worth a percent or two, and stays so while it lives. So there are many
lives: all processes begin anew, the median of a life's rounds is one observation, and the interval of the mean comes
from drawing whole lives (bootstrap). The base runs twice, and what is compared is compared with the mean of both; how
far the two are apart says what the method cannot see.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time_ns, sleep, thread_time_ns
from typing import NamedTuple

from common import HERE, percentile

_TURN_NS = 4_000_000
_REST_S = 1.0
_PROCESSOR = max(os.sched_getaffinity(0))


class Contender(NamedTuple):
    """A build of the package, and what a process does with it."""

    path: Path
    call: str
    """`module.function(...)` of a benchmark, which ends in `serve`."""


def serve(work: Callable[[int, int], None], scraped_at: str = "") -> None:
    """Work whenever a line says how much, and print the CPU time of this thread; or rest, and print the process's."""
    print(scraped_at, flush=True)
    for line in sys.stdin:
        pages, count = map(int, line.split())
        if count:
            work(pages, count // 10)  # the caches are full of somebody else's
            begun = thread_time_ns()
            work(pages, count)
            print(thread_time_ns() - begun, flush=True)
        else:
            begun = process_time_ns()
            sleep(_REST_S)
            print(process_time_ns() - begun, flush=True)


_kept: list[bytearray] = []


def shake() -> None:
    """Leave the heap as a process that has worked for a while leaves it, each time in another way.

    The allocator's holes decide some percent of a cycle, and equal processes have equal holes.
    """
    blocks = [bytearray(random.randrange(600, 6000)) for _ in range(4000)]
    random.shuffle(blocks)
    _kept.extend(blocks[:2000])


class _Process:
    def __init__(self, contender: Contender) -> None:
        module = contender.call.partition(".")[0]
        code = (
            f"import os, sys; os.sched_setaffinity(0, {{{_PROCESSOR}}}); "
            f"sys.path.append({str(HERE)!r}); import turns; turns.shake(); "
            f"import {module}; {contender.call}"
        )
        environment = {**os.environ, "PYTHONPATH": str(contender.path), "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._scraped_at = ""

    def ready(self) -> None:
        self._scraped_at = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a process that takes turns ended early")
        return line.strip()

    def begin(self, pages: int, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{pages} {count}\n")
        self._process.stdin.flush()

    def end(self) -> float:
        return float(self._line())

    def turn(self, pages: int, count: int) -> float:
        self.begin(pages, count)
        return self.end()

    def scrape(self) -> None:
        if self._scraped_at:
            urllib.request.urlopen(self._scraped_at).read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Life(NamedTuple):
    """What was seen of all contenders between two beginnings."""

    ns: dict[int, dict[str, list[float]]]
    """CPU time of the working thread for one piece of work: by pages, contender and round."""
    resting: dict[str, float]
    """CPU time of the process in a second in which it only is scraped once, as a share of that second."""


def live(contenders: dict[str, Contender], pages: Sequence[int], rounds: int) -> Life:
    """Start all contenders, let them take turns, and end them."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ours - {_PROCESSOR} or ours)
    processes = {name: _Process(contender) for name, contender in contenders.items()}
    for process in processes.values():
        process.ready()
        process.scrape()  # the first is dearer
    taken = {each: _turns(processes, each, rounds) for each in pages}
    for process in processes.values():
        process.begin(0, 0)
    sleep(_REST_S / 4)
    for process in processes.values():
        process.scrape()
    resting = {name: process.end() / _REST_S / 1e9 for name, process in processes.items()}
    for process in processes.values():
        process.close()
    os.sched_setaffinity(0, ours)
    return Life(taken, resting)


def _turns(processes: dict[str, _Process], pages: int, rounds: int) -> dict[str, list[float]]:
    for process in processes.values():
        process.turn(pages, 2000)
        count = max(1, round(_TURN_NS / (process.turn(pages, 2000) / 2000)))
    taken: dict[str, list[float]] = {name: [] for name in processes}
    names = list(processes)
    for _ in range(rounds):
        random.shuffle(names)
        for name in names:
            taken[name].append(processes[name].turn(pages, count) / count)
    return taken


class Mean(NamedTuple):
    """A mean over lives, and where it lies in 95 of 100 drawings of lives."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Draw them again and again."""
        dice = random.Random(1)
        means = sorted(statistics.fmean(dice.choices(values, k=len(values))) for _ in range(4000))
        return cls(statistics.fmean(values), percentile(means, 2.5), percentile(means, 97.5))


def ratios(lives: Sequence[Life], pages: int, name: str, bases: Sequence[str]) -> list[float]:
    """Return one ratio for each life: the median of its rounds, each to the mean of the bases beside it."""
    found = []
    for life in lives:
        ns = life.ns[pages]
        beside = map(statistics.fmean, zip(*(ns[base] for base in bases)))
        found.append(statistics.median([mine / base for mine, base in zip(ns[name], beside)]))
    return found
