"""A simulated service behind an Admission: requests that come by chance, and slow each other down. No clock."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from typing import NamedTuple

from sandhost.serve.line import Request
from sandhost.serve.overload import Admission
from sandhost.serve.problems import Problem

TICK_S = 0.005


class Outcome(NamedTuple):
    """What became of a request. Times are of the simulation."""

    tenant: str
    arrived_s: float
    started_s: float | None
    ended_s: float
    problem: Problem | None

    @property
    def total_s(self) -> float:
        return self.ended_s - self.arrived_s


class Load:
    """A service with `cores` places that are really there: more at once, and each takes longer."""

    def __init__(self, cores: int = 8, seed: int = 1, **options) -> None:
        self.now_s = 0.0
        self.cores = cores
        self.chance = random.Random(seed)
        self.admission = Admission(clock=lambda: self.now_s, **options)
        self.in_service = 0
        self.outcomes: list[Outcome] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.every(TICK_S, self.admission.turn)

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, what))

    def every(self, seconds: float, what: Callable[[], None]) -> None:
        def again() -> None:
            what()
            self.at(self.now_s + seconds, again)

        self.at(self.now_s + seconds, again)

    def run(self, seconds: float) -> list[Outcome]:
        """Go on for so long, and return what ended meanwhile."""
        before = len(self.outcomes)
        until_s = self.now_s + seconds
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(self._events)
            what()
        self.now_s = until_s
        return self.outcomes[before:]

    def arrivals(
        self,
        tenant: str,
        rate_per_s: float,
        seconds: float,
        takes_s: float = 0.010,
        deadline_s: float | None = None,
    ) -> None:
        """Let requests of a tenant come, from now on, for so long."""
        until_s = self.now_s + seconds

        def come() -> None:
            self.at(self.now_s + self.chance.expovariate(rate_per_s), arrive)

        def arrive() -> None:
            if self.now_s < until_s:
                self.one(tenant, takes_s * self.chance.lognormvariate(-0.125, 0.5), deadline_s)
                come()

        come()

    def one(self, tenant: str, takes_s: float, deadline_s: float | None = None) -> None:
        arrived_s = self.now_s
        made: list[Request] = []
        early: list[Problem | None] = []

        def settle(problem: Problem | None) -> None:
            if not made:
                early.append(problem)
            else:
                go_on(problem)

        def go_on(problem: Problem | None) -> None:
            if problem is not None:
                self.outcomes.append(Outcome(tenant, arrived_s, None, self.now_s, problem))
                return
            started_s = self.now_s
            self.in_service += 1
            slower = max(1.0, self.in_service / self.cores)
            self.at(started_s + takes_s * slower, lambda: end(started_s))

        def end(started_s: float) -> None:
            self.in_service -= 1
            self.outcomes.append(Outcome(tenant, arrived_s, started_s, self.now_s, None))
            self.admission.finish(made[0], done=True)

        made_now = self.admission.request(tenant, deadline_s, settle)
        made.append(made_now)
        for problem in early:
            go_on(problem)


def accepted(outcomes: list[Outcome]) -> list[float]:
    return [outcome.total_s for outcome in outcomes if outcome.problem is None]


def refusals(outcomes: list[Outcome]) -> list[float]:
    return [outcome.total_s for outcome in outcomes if outcome.problem is not None]


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[math.ceil(q * len(values)) - 1]
