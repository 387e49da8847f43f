"""A tenant's requests before the service, and whether they start soon: what `Admission` is made of. No clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from .problems import Problem

__all__ = ["Line", "Request"]

_LEAST_CAME = 8
"""How many requests, at the least, say whether most start soon. Arbitrary."""


class Request:
    """A request that has come. `started_s` is None until it is in service."""

    __slots__ = ("_settle", "arrived_s", "deadline_at_s", "line", "settled", "started_s")

    def __init__(
        self,
        line: Line,
        arrived_s: float,
        deadline_at_s: float,
        settle: Callable[[Problem | None], None],
    ) -> None:
        self.line, self.arrived_s, self.deadline_at_s = line, arrived_s, deadline_at_s
        self.started_s: float | None = None
        self.settled = False
        self._settle = settle

    def settle(self, problem: Problem | None) -> None:
        """It may start (None), or may not."""
        self.settled = True
        self._settle(problem)


class Line:
    """One tenant: its requests in line, oldest first, and what it has in service."""

    __slots__ = (
        "_came",
        "_since_s",
        "_soon",
        "in_flight",
        "overloaded",
        "served",
        "takes_s",
        "tenant",
        "waiting",
        "weight",
    )

    def __init__(self, tenant: str, weight: float, served: float) -> None:
        self.tenant, self.weight = tenant, weight
        self.waiting: deque[Request] = deque()
        self.in_flight = 0
        self.served = served  # requests over weight: between equals, who had less goes first
        self.takes_s: float | None = None  # how long its requests take, smoothed
        self.overloaded = False
        self._came = self._soon = 0  # in the window that began at `since`
        self._since_s = -math.inf

    def came(self, now_s: float, window_s: float) -> None:
        """A request has come."""
        if self._came >= _LEAST_CAME and now_s - self._since_s >= window_s:
            few = 2 if self.overloaded else 4  # so that a bit of luck does not end it
            self.overloaded = few * self._soon < self._came
            self._came = 0
        if not self._came:
            self._since_s, self._soon = now_s, 0
        self._came += 1

    def started_soon(self) -> None:
        """One of them has started, and waited for no longer than it may."""
        self._soon += 1

    def turn(self) -> tuple[float, float]:
        """Whose is least has the next place."""
        return (self.in_flight + 1) / self.weight, self.served
