"""The run: two threads serve guests of several tenants, honest and hostile, in waves.

Each thread spawns a guest, has it work, and keeps it alive for a while as a session would; how many
are kept rises and falls, so that one can see resident memory follow. Now and then a hostile guest
does something else. Nothing is shared between the threads but the host.
"""

from __future__ import annotations

import math
import random
import threading
import time
from array import array
from collections import Counter, deque
from dataclasses import dataclass, field
from time import perf_counter_ns

from ..bench.checks import held_pages
from ..bench.kernel import resident_bytes
from ..guest import Guest
from .cast import MISDEEDS, TENANTS, Cast, Stopped, hoard, peek

__all__ = ["THREADS", "Load", "Sample", "Worker"]

THREADS = 2
_HONEST_TENANTS = tuple(TENANTS)[:-1]
_SHARES = (4, 2, 1)
_HOSTILE = tuple(TENANTS)[-1]
_MOST_HELD = 200
"""Guests that a thread keeps alive at the crest of a wave."""
_WAVES = 3
_HOSTILE_EVERY_S = 0.05
_CHECK_EVERY = 50


@dataclass(frozen=True)
class Sample:
    """One moment of the run."""

    seconds: float
    resident: int
    live: int


class Worker(threading.Thread):
    """One of the threads that serve."""

    def __init__(self, load: Load, number: int) -> None:
        super().__init__(name=f"demo-{number}", daemon=True)
        self.load, self.random = load, random.Random(number)
        self.held: deque[tuple[str, Guest]] = deque()
        self.live: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.jobs: Counter[str] = Counter()
        self.stopped: dict[str, list[Stopped]] = {}
        self.spawn_ns, self.unload_ns = array("q"), array("q")
        self.returned = 0
        self.wrong = 0
        self.checked = self.mismatches = 0
        self.peeks = self.found = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Serve until the time is over or somebody asks to stop."""
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - it is raised in the main thread
            self.failure = error
            self.load.stop.set()
        finally:
            while self.held:
                self._close_oldest()

    def _serve(self) -> None:
        load, cast = self.load, self.load.cast
        work = cast.honest_work()
        weights = [weight for *_, weight in work]
        next_misdeed = 0.0
        while not load.stop.is_set():
            now = load.elapsed()
            if now >= load.seconds:
                return
            if now >= next_misdeed:
                self._misbehave()
                next_misdeed = now + _HOSTILE_EVERY_S * self.random.uniform(0.5, 1.5)
            plugin, job, _ = self.random.choices(work, weights)[0]
            tenant = self.random.choices(_HONEST_TENANTS, _SHARES)[0]
            started = perf_counter_ns()
            guest = cast.spawn(plugin, tenant)
            self.spawn_ns.append(perf_counter_ns() - started)
            self.live[tenant] += 1
            self.held.append((tenant, guest))
            self.wrong += not job(guest, self.random)
            self.jobs[plugin] += 1
            while len(self.held) > load.wanted(now):
                self._close_oldest()

    def _close_oldest(self) -> None:
        tenant, guest = self.held.popleft()
        checking = self.done.total() % _CHECK_EVERY == 0
        pages = held_pages(guest) if checking else 0
        started = perf_counter_ns()
        reclaim = guest.close()
        taken = perf_counter_ns() - started
        if checking:  # reading pagemap has woken the caches: not timed
            self.checked += 1
            self.mismatches += pages != reclaim.pages
        else:
            self.unload_ns.append(taken)
        self.returned += reclaim.bytes
        self.live[tenant] -= 1
        self.done[tenant] += 1

    def _misbehave(self) -> None:
        cast = self.load.cast
        kind = self.random.randrange(len(MISDEEDS) + 2)
        if kind < len(MISDEEDS):
            misdeed = MISDEEDS[kind]
            self._note(misdeed.name, misdeed.commit(cast, _HOSTILE))
        elif kind == len(MISDEEDS):
            self._note("hoards guests", hoard(cast, _HOSTILE))
        else:
            found = peek(cast, self.random.choice(_HONEST_TENANTS), _HOSTILE)
            if found is not None:
                self.peeks += 1
                self.found += found
        self.done[_HOSTILE] += 1

    def _note(self, name: str, stopped: Stopped) -> None:
        self.stopped.setdefault(name, []).append(stopped)


@dataclass
class Load:
    """The run, its workers and what is seen of it over time."""

    cast: Cast
    seconds: float
    stop: threading.Event = field(default_factory=threading.Event)
    samples: list[Sample] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)
    _started: float = 0.0

    def start(self) -> None:
        """Start the threads."""
        self._started = time.monotonic()
        self.workers = [Worker(self, number) for number in range(THREADS)]
        for worker in self.workers:
            worker.start()

    def elapsed(self) -> float:
        """Return seconds since the start."""
        return time.monotonic() - self._started

    def wanted(self, now: float) -> int:
        """Return how many guests a thread keeps alive at this moment."""
        phase = 2 * math.pi * _WAVES * now / self.seconds
        return round(_MOST_HELD * (1 - math.cos(phase)) / 2)

    def sample(self) -> Sample:
        """Look at the process, now."""
        live = self.cast.host.stats().guests_live
        sample = Sample(self.elapsed(), resident_bytes(), live)
        self.samples.append(sample)
        return sample

    @property
    def running(self) -> bool:
        """Whether a thread still serves."""
        return any(worker.is_alive() for worker in self.workers)

    def finish(self) -> None:
        """Stop the threads, wait for them, and raise what one of them raised."""
        self.stop.set()
        for worker in self.workers:
            worker.join()
        for worker in self.workers:
            if worker.failure is not None:
                raise worker.failure

    # ---- sums over the threads ----

    def done(self, tenant: str | None = None) -> int:
        """Return guests that ended, of one tenant or of all."""
        return sum(w.done.total() if tenant is None else w.done[tenant] for w in self.workers)

    def live(self, tenant: str) -> int:
        """Return guests alive now, of one tenant."""
        return sum(w.live[tenant] for w in self.workers)

    def jobs(self) -> Counter[str]:
        """Return how often each plugin did its work."""
        return sum((w.jobs for w in self.workers), Counter())

    def stopped(self) -> dict[str, list[Stopped]]:
        """Return how each kind of misdeed ended, every time."""
        out: dict[str, list[Stopped]] = {misdeed.name: [] for misdeed in MISDEEDS}
        out["hoards guests"] = []
        for worker in self.workers:
            for name, ends in list(worker.stopped.items()):
                out[name].extend(ends)
        return out

    def total(self, counter: str) -> int:
        """Return the sum of one of the workers' plain counters."""
        return sum(getattr(worker, counter) for worker in self.workers)

    def latencies(self, operation: str) -> list[int]:
        """Return all durations of "spawn" or "unload", sorted, in nanoseconds."""
        return sorted(ns for w in self.workers for ns in getattr(w, f"{operation}_ns"))
