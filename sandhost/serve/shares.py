"""How much of each turn of the event loop a tenant has: who asks for much waits for the next turn, and nobody for him.

    turn:  │ line of a │ line of b │ poll: ready sockets, each at once if its tenant has time left │ tasks │ turn ...
           └─ each at most `each_s`                       └─ else into its tenant's line           └─ else next turn

One loop does the work of all tenants. It takes what is ready in the kernel's order, so that a flood of one, or
twenty large uploads, would be done before what others asked for in the same instant. So time is counted for each
tenant: of requests at the wire, and of the steps of its tasks (steps.py). Whoever had his share of a turn goes on
in the next one, which comes at once, after all others had theirs: deficit round robin (Shreedhar and Varghese,
1995), as FQ-CoDel has it (RFC 8290), for tenants and time in place of flows and bytes. It is time of work: where the
kernel gave the processor to somebody else in the midst of a request, its tenant owes nothing for that.

Whoever used much of the loop's time lately (lately.py) also waits for all who used little: what he asks for gets in
line, refusals too, of which a slice is done in a turn in which nobody else came, or after half a millisecond. A
machine that slept for two milliseconds finds ten requests of others before his, and theirs are soon done.

A tenant's quota of processors holds for the loop's time as well: a bucket that fills at that rate. A loop that is
never idle is no better than any other program that computes: the kernel lets it wait for its processor.

It tells overload, too, by CoDel's rule (RFC 8289). A request that has been in line for long is late. Now and then that
is a burst, and over some turns later. A tenant of which for a tenth of a second there was one at the end of each
turn has too much: it is served within half its share, and what else it asks for is refused, until it had a turn
with nothing refused. Steps of tasks were let in before, and are none of that.

Nothing is done here but arithmetic, so days can be simulated: `soon`, `later` and the clocks come from outside.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .._log import get_logger
from .lately import Lately, Use

__all__ = ["NOBODY", "Shares", "Terms"]

NOBODY = ""
"""In place of a tenant, for who has no valid token."""
_TURN_S, _MOST_S = 0.004, 0.0005
"""What all shares of a turn are together, and the most that one is: some five calls."""
_MOST_DEBT_S, _MOST_CHARGED_S = 4 * _MOST_S, 0.02
"""Of a turn; of a quota, for one thing: a machine that slept in its midst is no tenant's fault."""
_LOOKED_AT_S, _LOOK_EVERY_S = 0.0005, 0.001
"""What takes longer may have been interrupted; how exactly that is known. Arbitrary; most takes a tenth of it."""
_MOST_REFUSING_S = 2 * _MOST_S
"""Some thirty refusals, which others wait for."""
_LATE_S, _WINDOW_S = 0.005, 0.1
"""CoDel's target and interval."""
_SLICE_S, _HELD_S = 0.0001, 0.0005
"""While others go before: how much of a line is done between two looks for them, and how long it waits at the most."""
_BURST_S = 1.0
"""Of a quota of processors: so much may be used at once, by who used little before. As guests have it."""
_TERMS_HOLD_S = _SWEPT_EVERY_S = 1.0
_LEAST_REST_S = 0.001
"""Arbitrary."""


class Terms(NamedTuple):
    """What a tenant may have."""

    weight: float = 1.0
    """Of two that want more than there is, one of weight 2 gets twice as much."""
    cpus: float | None = None
    """Of the loop's time; None: all of it."""


class _Share(Use):
    __slots__ = (
        "credit_s",
        "each_s",
        "in_slices",
        "is_steps_turn",
        "late_since_s",
        "left_s",
        "line",
        "refused",
        "since_s",
        "steps",
        "tenant",
        "terms",
        "terms_s",
        "used",
    )

    def __init__(self, tenant: str, terms: Terms, now_s: float) -> None:
        super().__init__()
        self.tenant = tenant
        self.in_slices = False  # its turn, since others go before
        self.terms, self.terms_s = terms, now_s
        self.each_s = _MOST_S
        self.credit_s = math.inf if terms.cpus is None else _BURST_S * terms.cpus
        """What its quota leaves it."""
        self.since_s = now_s  # of that
        self.left_s = min(_MOST_S, self.credit_s)
        """Of this turn; below 0 what it has had of the next ones."""
        self.line: deque[tuple[float, Callable[[], object]]] = deque()
        self.steps: deque[tuple[float, Callable[[], object]]] = deque()
        """What waits, requests and steps, and since when."""
        self.is_steps_turn = False
        self.used = self.refused = False  # in this turn
        self.late_since_s = math.inf

    @property
    def waits(self) -> bool:
        """Whether anything does."""
        return bool(self.line or self.steps)

    def take(self) -> tuple[float, Callable[[], object]]:
        """Return what is next: a request and a step by turns, also where a turn of the loop is one of them."""
        first, second = (self.steps, self.line) if self.is_steps_turn else (self.line, self.steps)
        self.is_steps_turn = not self.is_steps_turn
        return (first or second).popleft()

    @property
    def is_idle(self) -> bool:
        """Whether turns are nothing to it: it used none of this one, owes nothing, and nothing waits."""
        return not self.used and not self.waits and self.left_s > 0

    def is_new(self, now_s: float) -> bool:
        """Whether nothing would be lost with it, where it is idle."""
        self._earn(now_s)
        return self.terms.cpus is None or self.credit_s >= _BURST_S * self.terms.cpus

    def charge(self, seconds: float) -> None:
        self.left_s -= seconds
        self.credit_s -= min(seconds, _MOST_CHARGED_S)
        self.used = True

    def _earn(self, now_s: float) -> None:
        if self.terms.cpus is not None:
            earned_s = self.terms.cpus * (now_s - self.since_s)
            self.credit_s = min(self.credit_s + earned_s, _BURST_S * self.terms.cpus)
        self.since_s = now_s

    def begin_turn(self, now_s: float, each_s: float) -> None:
        self.each_s = each_s
        self._earn(now_s)
        owed_s = max(min(self.left_s, 0.0), -_MOST_DEBT_S)
        self.left_s = min(owed_s + each_s, self.credit_s)

    def rest_s(self) -> float:
        """Return in how long it may go on, though its quota is used."""
        assert self.terms.cpus is not None
        return max(_LEAST_REST_S, -self.credit_s / max(self.terms.cpus, 1e-6))

    def end_turn(self, now_s: float) -> None:
        """Look whether something is late."""
        late = self.refused or (bool(self.line) and now_s - self.line[0][0] > _LATE_S)
        self.late_since_s = min(self.late_since_s, now_s) if late else math.inf
        self.used = self.refused = False

    def has_too_much(self, now_s: float) -> bool:
        return now_s - self.late_since_s > _WINDOW_S


class Shares:
    """Time of one event loop.

    Args:
        wait_s: the longest that anything waits in line: a burst is worth so much.
        terms: of a tenant; also of one that was removed, whose requests may still be at work.
        soon: has something done in the next turn.
        later: has something done in so many seconds.
        clock: seconds, never going back.
        worked: seconds that this thread was on a processor.
    """

    def __init__(
        self,
        wait_s: float,
        terms: Callable[[str], Terms] = lambda _tenant: Terms(),
        *,
        soon: Callable[[Callable[[], object]], object] | None = None,
        later: Callable[[float, Callable[[], object]], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        self._wait_s, self._terms, self._clock, self._worked = wait_s, terms, clock, worked
        self._soon = soon or (lambda work: asyncio.get_running_loop().call_soon(work))
        self._later = later or (lambda s, work: asyncio.get_running_loop().call_later(s, work))
        # Invariant: a tenant is in one of them at most. Turns are about the first, of which there are as many as
        # a turn has requests of; the second may be all tenants of the service.
        self._active: dict[str, _Share] = {}
        """Who waits, owes, or used some in this turn or the last."""
        self._idle: dict[str, _Share] = {}
        """Who does not, but has not all of its quota."""
        self._lately = Lately()
        self._behind: deque[_Share] = deque()
        """Those `in_slices`. Invariant: where a turn goes on with the first, something waits and some is left."""
        self._went_on_s = -math.inf  # with these
        self._swept_s = -math.inf
        self._open = False  # invariant: whether `soon` has been asked for the next turn
        self._rests_until_s = math.inf  # invariant: until when `later` was asked to begin one
        self._began_s = -math.inf
        self._looked_s = self._worked_s = 0.0  # by both clocks, not long before this turn
        self._came_s: float | None = None  # of what is being done now, when it got in line

    def must_wait(self, tenant: str) -> bool:
        """Whether something of it that comes now has to get in line: its share is used, or others are before it."""
        self._begin()
        share = self._active.get(tenant)
        if share is None:
            share = self._idle.get(tenant)
            return share is not None and self._gives_way(share)
        return share.left_s <= 0 or share.waits or self._gives_way(share)

    def has_time_to_refuse(self, tenant: str) -> bool:
        """Whether what would have to wait may be refused at once, for some of the next turns' time."""
        share = self._active.get(tenant)
        return share is None or (share.left_s > -_MOST_REFUSING_S and not self._gives_way(share))

    def _gives_way(self, share: _Share) -> bool:
        return self._lately.gives_way(share, self._began_s)

    def wait(self, tenant: str, go_on: Callable[[], object]) -> None:
        """Have `go_on` called when it is its turn, in this order for each tenant, and its time counted."""
        self._of(tenant).line.append((self._clock(), go_on))

    def wait_to_step(self, tenant: str, go_on: Callable[[], object]) -> None:
        """The same for a step of a task: of requests and steps one and one go on."""
        self._of(tenant).steps.append((self._clock(), go_on))

    def charge(self, tenant: str, seconds: float) -> None:
        """Count time that something of it has taken, which ends now."""
        self._charge(self._of(tenant), self._work_of(seconds))

    def _charge(self, share: _Share, seconds: float) -> None:
        share.charge(seconds)
        self._lately.charge(share, seconds, self._began_s)

    def refuses(self, tenant: str) -> bool:
        """Whether what it asks for now is too much; counts as refused, then."""
        if not self._active and self._came_s is None:
            return False
        share, now_s = self._of(tenant), self._clock()
        too_late = self._came_s is not None and now_s - self._came_s > self._wait_s
        if not too_late and (share.left_s > share.each_s / 2 or not share.has_too_much(now_s)):
            return False
        share.refused = share.used = True
        return True

    def since_s(self) -> float:
        """Return since when what is being done has been here: it came to its line, or to this turn."""
        self._begin()
        return self._began_s if self._came_s is None else self._came_s

    def wait_s(self, tenant: str) -> float:
        """Return how long the request at the head of its line has waited, or what is being done now."""
        share = self._active.get(tenant)
        since_s = share.line[0][0] if share is not None and share.line else self._came_s
        return 0.0 if since_s is None else self._clock() - since_s

    def _begin(self) -> None:
        """Something happens: a turn has begun, if it was none yet."""
        if not self._open:
            self._open = True
            now_s = self._clock()
            if now_s - self._began_s > _LATE_S:  # there was nothing to do
                for share in self._active.values():
                    share.late_since_s = math.inf
            self._began_s = now_s
            self._look(now_s)
            self._soon(self._turn)

    def _of(self, tenant: str) -> _Share:
        self._begin()
        share = self._active.get(tenant)
        if share is None:
            share = self._idle.pop(tenant, None)
            if share is None:
                share = _Share(tenant, self._terms(tenant), self._clock())
            self._active[tenant] = share
        return share

    def _turn(self) -> None:
        try:
            self._take_turn()
        except BaseException:
            self._open = False  # else nobody would have one any more
            raise

    def _take_turn(self) -> None:
        before_s, self._began_s = self._began_s, self._clock()
        self._look(self._began_s)
        self._drop_used_up()
        begin = [share for share in self._active.values() if not share.in_slices]
        self._share_out(begin, self._began_s)
        for share in begin:
            if share.waits and share.left_s > 0 and self._gives_way(share):
                share.in_slices = True
                self._behind.append(share)
            else:
                self._go_on(share)
        if self._behind and not self._is_held(before_s):
            self._go_on_behind()
        now_s = self._clock()
        for tenant, share in list(self._active.items()):
            if share.in_slices:  # its turn goes on
                continue
            if share.is_idle:
                self._idle[tenant] = self._active.pop(tenant)
            share.end_turn(now_s)
        self._sweep(now_s)
        waiting = [share for share in self._active.values() if share.waits or share.left_s <= 0]
        self._open = any(share.credit_s > 0 for share in waiting)
        if self._open:
            self._soon(self._turn)
            return
        rests = [share.rest_s() for share in waiting if share.waits]
        if rests and now_s + min(rests) < self._rests_until_s:
            self._rests_until_s = now_s + min(rests)
            self._later(min(rests), self._rested)

    def _rested(self) -> None:
        self._rests_until_s = math.inf
        self._begin()

    def _sweep(self, now_s: float) -> None:
        if now_s - self._swept_s > _SWEPT_EVERY_S:
            self._swept_s = now_s
            self._idle = {
                tenant: share for tenant, share in self._idle.items() if not share.is_new(now_s)
            }

    def _share_out(self, shares: list[_Share], now_s: float) -> None:
        most_s = min(_MOST_S, _TURN_S / max(1, len(self._active)))
        for share in shares:
            if now_s - share.terms_s > _TERMS_HOLD_S:
                share.terms, share.terms_s = self._terms(share.tenant), now_s
                if share.terms.cpus is None:
                    share.credit_s = math.inf
                elif share.credit_s == math.inf:
                    share.credit_s = 0.0
        heaviest = max((share.terms.weight for share in self._active.values()), default=1.0)
        for share in shares:
            share.begin_turn(now_s, most_s * share.terms.weight / heaviest)

    def _is_held(self, before_s: float) -> bool:
        """Whether to look for more first, since one of those that go before came in the turn that began then."""
        came = self._lately.little_s >= before_s
        return came and self._began_s < self._went_on_s + _HELD_S

    def _drop_used_up(self) -> None:
        """End the turn of those whose tasks used it up meanwhile: they begin another one, and earn for it."""
        while self._behind and not (self._behind[0].waits and self._behind[0].left_s > 0):
            self._behind.popleft().in_slices = False

    def _go_on_behind(self) -> None:
        share = self._behind[0]
        if self._go_on(share, _SLICE_S):
            self._behind.popleft()
            share.in_slices = False
        self._went_on_s = self._clock()

    def _go_on(self, share: _Share, most_s: float = math.inf) -> bool:
        """Do what is in its line, for so long or a little more; return whether that is all that its share allows."""
        began_s = self._clock()
        until_s = began_s + most_s
        while share.waits and share.left_s > 0:
            if began_s > until_s:
                return False
            self._came_s, go_on = share.take()
            try:
                go_on()
            except Exception as error:  # noqa: BLE001 - one connection's, and no reason to keep all others waiting
                get_logger("sandhost.serve").error("a request failed", exc_info=error)
            self._came_s = None
            ended_s = self._clock()
            self._charge(share, self._work_of(ended_s - began_s))
            began_s = ended_s
        return True

    def _look(self, now_s: float) -> None:
        """Note by both clocks where this turn begins; a few turns late, since one is a system call."""
        if now_s - self._looked_s > _LOOK_EVERY_S:
            self._looked_s, self._worked_s = now_s, self._worked()

    def _work_of(self, seconds: float) -> float:
        """Return what of the last seconds was work: the loop may have had to wait for its processor meanwhile."""
        if seconds < _LOOKED_AT_S:
            return seconds
        now_s, worked_s = self._clock(), self._worked()
        waited_s = (now_s - self._looked_s) - (worked_s - self._worked_s)
        self._looked_s, self._worked_s = now_s, worked_s
        return max(0.0, seconds - max(0.0, waited_s))
