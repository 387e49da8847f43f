"""How much of each turn of the event loop a tenant has: who asks for much waits for the next turn, and nobody for him.

    turn:  │ line of a │ line of b │ poll: ready sockets, each at once if its tenant has time left │ tasks │ turn ...
           └─ each at most `each_s`                       └─ else into its tenant's line           └─ else next turn

One loop does the work of all tenants. It takes what is ready in the kernel's order, so that a flood of one, or
twenty large uploads, would be done before what others asked for in the same instant. So time is counted for each
tenant: of requests at the wire (`wait`, `charge`) and of the steps of its tasks (`Steps`). Whoever had his
share of a turn goes on in the next one, which comes at once, after all others had theirs: deficit round robin
(Shreedhar and Varghese, 1995), as FQ-CoDel has it (RFC 8290), for tenants and time in place of flows and bytes.

It tells overload, too, by CoDel's rule (RFC 8289). Something is late when it has been in line for long, or came to a
long turn, in which it waited for its place. Now and then that is a burst, and over some turns later. A tenant
of whose turns for a tenth of a second each was late has too much: it is served within half its share,
and what else it asks for is refused, until it had a turn with nothing refused.

Nothing is done here but arithmetic, so days can be simulated: `soon` and `clock` come from outside.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Shares", "Steps"]

_T = TypeVar("_T")

_TURN_S, _MOST_S = 0.004, 0.0005
"""What all shares of a turn are together, and the most that one is: some five calls."""
_MOST_DEBT_S = 4 * _MOST_S
"""The loop may have been kept from the processor meanwhile, which is no tenant's fault."""
_LATE_S, _WINDOW_S = 0.005, 0.1
"""CoDel's target and interval."""
_MOST_SKIPPED = 16
"""Turns. A step waits no longer, also where its tenant's requests take all of its shares."""


class _Share:
    __slots__ = ("each_s", "late_since_s", "left_s", "line", "refused", "used", "weight")

    def __init__(self, weight: float, each_s: float) -> None:
        self.weight, self.each_s = weight, each_s
        self.left_s = each_s
        """Of this turn; below 0 what it has had of the next ones."""
        self.line: deque[tuple[float, Callable[[], object]]] = deque()
        """What waits, and since when."""
        self.used = self.refused = False  # in this turn
        self.late_since_s = math.inf

    def end_turn(self, now_s: float, *, was_long: bool) -> None:
        """Look whether its turn was late."""
        late = (
            self.refused
            or (was_long and self.used and self.left_s < self.each_s / 2)
            or (bool(self.line) and now_s - self.line[0][0] > _LATE_S)
        )
        self.late_since_s = min(self.late_since_s, now_s) if late else math.inf
        self.used = self.refused = False

    def has_too_much(self, now_s: float) -> bool:
        return now_s - self.late_since_s > _WINDOW_S


class Shares:
    """Time of one event loop.

    Args:
        wait_s: the longest that anything waits in line: a burst is worth so much.
        weight: of a tenant: of two that want more than there is, one of weight 2 gets twice as much.
        soon: has something done in the next turn.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        wait_s: float,
        weight: Callable[[str], float] = lambda _tenant: 1.0,
        *,
        soon: Callable[[Callable[[], object]], object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._wait_s, self._weight, self._clock = wait_s, weight, clock
        self._soon = soon or (lambda work: asyncio.get_running_loop().call_soon(work))
        self._shares: dict[
            str, _Share
        ] = {}  # invariant: of who waits, or used some in this turn or the last
        self._open = False  # invariant: whether `soon` has been asked for the next turn
        self._began_s = -math.inf
        self._heaviest = 0.0
        self._waited_s = 0.0  # what is being done now, in line

    def must_wait(self, tenant: str) -> bool:
        """Whether something of it has to get in line, since the share of this turn is used or others are before it."""
        share = self._shares.get(tenant)
        return share is not None and (share.left_s <= 0 or bool(share.line))

    def is_used(self, tenant: str) -> bool:
        """Whether its share of this turn is used."""
        share = self._shares.get(tenant)
        return share is not None and share.left_s <= 0

    def wait(self, tenant: str, go_on: Callable[[], object]) -> None:
        """Have `go_on` called when it is its turn, in this order for each tenant, and its time counted."""
        self._of(tenant).line.append((self._clock(), go_on))

    def charge(self, tenant: str, seconds: float) -> None:
        """Count time that something of it has taken."""
        share = self._of(tenant)
        share.left_s -= seconds
        share.used = True

    def refuses(self, tenant: str) -> bool:
        """Whether what it asks for now is too much; counts as refused, then."""
        if not self._shares and not self._waited_s:
            return False
        share = self._of(tenant)
        if self._waited_s <= self._wait_s and (
            share.left_s > share.each_s / 2 or not share.has_too_much(self._clock())
        ):
            return False
        share.refused = share.used = True
        return True

    def wait_s(self, tenant: str) -> float:
        """Return how long what is at the head of its line has waited, or what is being done now."""
        share = self._shares.get(tenant)
        if share is None or not share.line:
            return self._waited_s
        return max(self._waited_s, self._clock() - share.line[0][0])

    def _of(self, tenant: str) -> _Share:
        if not self._open:
            self._open = True
            now_s = self._clock()
            if now_s - self._began_s > _LATE_S:
                self._shares.clear()  # there was nothing to do
            self._began_s = now_s
            self._soon(self._turn)
        share = self._shares.get(tenant)
        if share is None:
            weight = self._weight(tenant)
            self._heaviest = max(self._heaviest, weight)
            each_s = _MOST_S * weight / self._heaviest
            share = self._shares[tenant] = _Share(weight, each_s)
        return share

    def _turn(self) -> None:
        now_s = self._clock()
        was_long = now_s - self._began_s > _LATE_S
        for tenant, share in list(self._shares.items()):
            if not share.used and not share.line and share.left_s > 0:
                del self._shares[tenant]
            share.end_turn(now_s, was_long=was_long)
        self._began_s = now_s
        self._share_out()
        for share in list(self._shares.values()):
            self._go_on(share)
        self._open = any(share.line or share.left_s <= 0 for share in self._shares.values())
        if self._open:
            self._soon(self._turn)

    def _share_out(self) -> None:
        self._heaviest = max((share.weight for share in self._shares.values()), default=0.0)
        most_s = min(_MOST_S, _TURN_S / max(1, len(self._shares)))
        for share in self._shares.values():
            share.each_s = most_s * share.weight / self._heaviest
            owed_s = max(min(share.left_s, 0.0), -_MOST_DEBT_S)
            share.left_s = owed_s + share.each_s

    def _go_on(self, share: _Share) -> None:
        began_s = self._clock()
        while share.line and share.left_s > 0:
            since_s, go_on = share.line.popleft()
            self._waited_s = began_s - since_s
            try:
                go_on()
            finally:
                self._waited_s = 0.0
            ended_s = self._clock()
            share.left_s -= ended_s - began_s
            share.used = True
            began_s = ended_s


class Steps(Coroutine[Any, Any, _T]):
    """A task's coroutine, whose steps wait for the next turn while its tenant has none left of this one."""

    __slots__ = ("_shares", "_skipped", "_tenant", "_work")

    def __init__(self, work: Coroutine[Any, Any, _T], shares: Shares, tenant: str) -> None:
        self._work, self._shares, self._tenant = work, shares, tenant
        self._skipped = 0

    def send(self, value: Any) -> Any:
        """Make a step, or yield None, which is how a task is asked to try again in the next turn."""
        if self._skipped < _MOST_SKIPPED and self._shares.is_used(self._tenant):
            self._skipped += 1
            return None
        self._skipped = 0
        began_s = time.perf_counter()
        try:
            return self._work.send(value)
        finally:
            self._shares.charge(self._tenant, time.perf_counter() - began_s)

    def throw(self, *raised: Any) -> Any:
        """Have an error raised where it waits, at once: it has waited."""
        return self._work.throw(*raised)

    def close(self) -> None:
        """End it."""
        self._work.close()

    def __await__(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        """Return what asyncio and anyio ask of a coroutine: its frame, what it waits for, whether it runs."""
        return getattr(self._work, name)
