"""Turns for work that takes long, fair between tenants: whoever was served longest ago is next.

    acme    ▒▒▒▒▒▒▒                     places: 2, of which one tenant has at most 1
    other   ▒                 ──►       [acme] [other]

One tenant cannot have all places, so that there is one soon for who comes next; and what it may have in line is
bounded. One that may not use that much rests after its turn. No thread: all of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .problems import TooMany

__all__ = ["Turns"]

_RETRY_S = 5.0


class Turns:
    """Places, and a line of each tenant before them.

    Args:
        places: how many have their turn at once.
        most_waiting: of one tenant.
    """

    def __init__(self, places: int, most_waiting: int) -> None:
        self._places, self._most_waiting = places, most_waiting
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}
        """Whoever was served longest ago is the first. Invariant: no line is empty."""
        self._busy: Counter[str] = Counter()
        self._resting: dict[str, asyncio.TimerHandle] = {}

    def check_room(self, tenant: str) -> None:
        """Raise `TooMany` when the tenant's line is full."""
        waiting = self.waiting(tenant)
        if waiting >= self._most_waiting:
            raise TooMany(
                f"{waiting} modules wait to be compiled, the most there may be",
                retry_after_s=_RETRY_S,
            )

    def waiting(self, tenant: str | None = None) -> int:
        """Return how many are in line, of one tenant or of all."""
        if tenant is not None:
            return len(self._lines.get(tenant, ()))
        return sum(map(len, self._lines.values()))

    @asynccontextmanager
    async def take(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it within the block. The line's bound is not looked at."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        self._next()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._busy[tenant] -= 1
            else:
                self._leave(tenant, turn)
            self._next()

    def rest(self, tenant: str, seconds: float) -> None:
        """Give the tenant no turn for so long; after what it rests for already."""
        loop = asyncio.get_running_loop()
        until_s, before = loop.time(), self._resting.pop(tenant, None)
        if before is not None:
            before.cancel()
            until_s = max(until_s, before.when())
        self._resting[tenant] = loop.call_at(until_s + seconds, self._rested, tenant)

    def _rested(self, tenant: str) -> None:
        del self._resting[tenant]
        self._next()

    def _may(self, tenant: str) -> bool:
        return self._busy[tenant] < max(1, self._places - 1) and tenant not in self._resting

    def _leave(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant, deque())
        if turn in line:
            line.remove(turn)
            if not line:
                del self._lines[tenant]

    def _next(self) -> None:
        while sum(self._busy.values()) < self._places:
            tenant = next(filter(self._may, self._lines), None)
            if tenant is None:
                return
            line = self._lines.pop(tenant)
            turn = line.popleft()
            if line:
                self._lines[tenant] = line
            if turn.cancelled():  # and its task has not run since
                continue
            turn.set_result(None)
            self._busy[tenant] += 1
            self._busy += Counter()  # without those at 0
