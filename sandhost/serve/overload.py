"""Who may come in, and when: a service that gets more than it can do does what it can, and says so.

    async with admission.enter("acme", deadline_s=2.0):
        ...                                   # or problems.TooMany, with a hint when to come again

                        in flight < limit
    request ─────────────────────────────────────► in service ──► latency ──► AdaptiveLimit
       │ else                        ▲
       └──► the tenant's line ───────┘ whoever has least in service for its weight
               │
               └──► refused: it has waited too long, or would

Nobody waits long. A line is served in order, and bounded by `wait_s`. When for a while three of four did not
start soon it is no burst but overload, and waiting in it helps nobody: its bound drops to half a request's
time, as CoDel has it (Nichols and Jacobson, 2012; RFC 8289), and where requests come thick and fast to what
finds somebody in line whenever a place becomes free. Who would wait longer is refused at once, before
anything else is done for it: at ten times the load, nine of ten requests end here, and what each of them
costs is taken from the tenth. What has waited too long is never started, so that no time goes into answers
that nobody waits for.

Tenants do not wait for each other: each has a line of its own, and a place that becomes free goes to the
tenant with the least in service for its weight. Tenants below their share may go above the limit, by a
quarter of it and by what others have above theirs, so that one whose requests take minutes does not keep
all places from who comes next.

Calls that are over before anything else runs (`at_once`) take no place: see shares.py.

No thread: all of it belongs to one event loop. `request`, `finish` and `turn` are what `enter` is made
of, with a clock from outside, so that hours can be simulated.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

from ..errors import ConfigError
from .concurrency import AdaptiveLimit
from .line import Line, Request
from .problems import DeadlinePassed, Problem, TooMany
from .shares import Shares, Terms

__all__ = ["Admission", "AdmissionStats"]

_AT_LEVEL = (1.0, 0.75, 0.5, 0.0, 0.0)
"""How much of the limit is left at each level of memory pressure. From RELEASE on no guest can start."""
_RESERVE = 0.25
_LEAST_BOUND_S = 0.002
_ENOUGH_IN_LINE = 8
"""Of all tenants together: with so many a place that becomes free is hardly ever left empty."""
_MOST_BETWEEN_S = 1.0
"""More is a pause, and says nothing of how often they come. Arbitrary."""
_TICK_S = 0.002
"""How often lines are looked through while somebody waits."""
_WHILE_S = 0.1
"""For how long most do not start soon until it is no burst. Arbitrary."""
_LEAST_HINT_S, _MOST_HINT_S = 0.05, 5.0
_HINT_UNDER_PRESSURE_S = 1.0
_REST_S = 1.0
"""For how long a line without requests is remembered. Arbitrary."""


class AdmissionStats(NamedTuple):
    """Figures of this moment, and counters from `admitted` on."""

    limit: int
    """Requests that may be in service at once: learned, and lowered by memory pressure."""
    in_flight: int
    waiting: int
    tenants: int
    """That have a request in service or in line."""
    least_s: float | None
    """Latency without load, as far as it is known."""
    typical_s: float | None
    """Latency of now."""
    admitted: int
    at_once: int
    """Of those, calls that were answered within a turn of the loop."""
    refused: dict[str, int]
    """By why: "line" (it would wait too long), "late" (it did), "pressure", "deadline"."""


class Admission:
    """Lets requests in.

    Args:
        limit: how many at once.
        wait_s: the longest that a request waits in line: a burst is worth so much, overload less.
        pressure: the level of memory pressure, 0 to 4: `lambda: host.pressure.level`.
        terms: what a tenant may have. It may have been removed, and asks for nothing new then.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        limit: AdaptiveLimit | None = None,
        *,
        wait_s: float = 0.05,
        pressure: Callable[[], int] = lambda: 0,
        terms: Callable[[str], Terms] = lambda _tenant: Terms(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not wait_s > 0:
            raise ConfigError(f"wait_s is more than 0 seconds, not {wait_s!r}")
        self._limit = limit or AdaptiveLimit()
        self._wait_s = wait_s
        self._pressure, self._terms, self._clock = pressure, terms, clock
        self._window_s = min(wait_s / 2, _WHILE_S)
        self.shares = Shares(wait_s, terms)
        """Of the loop's time, for who asks before there is a request."""
        self._lines: dict[str, Line] = {}
        self._wanting: dict[Line, None] = {}  # invariant: those with something in line
        self._resting: dict[Line, float] = {}  # invariant: with nothing at all; since when
        self._weights = 0.0  # invariant: of all lines together
        self._held: float | None = None  # see _reserved_for; None: to be counted again
        self._in_flight = self._waiting = self._admitted = self._at_once = 0
        self._came_s = -math.inf  # the last one
        self._every_s = _MOST_BETWEEN_S  # between two, of late
        self._served = 0.0  # of whoever was served last: a newcomer begins there
        self._refused: Counter[str] = Counter()
        self._ticking = False
        self._swept_s = -math.inf

    def stats(self) -> AdmissionStats:
        """Return the figures."""
        return AdmissionStats(
            self.places,
            self._in_flight,
            self._waiting,
            len(self._lines) - len(self._resting),
            self._limit.least_s,
            self._limit.typical_s,
            self._admitted,
            self._at_once,
            dict(self._refused),
        )

    # ---- from tasks ----

    def enter(self, tenant: str, deadline_s: float | None = None) -> _Visit:
        """Wait for a place, not for long, and have it within the block of an `async with`.

        Args:
            deadline_s: how long the requester will wait for the answer.

        Raises:
            TooMany: there is more to do than can be done in time; `retry_after_s` says when to come again.
            DeadlinePassed: the requester's time was over before its turn.
        """
        return _Visit(self, tenant, deadline_s)

    def ask(
        self, tenant: str, deadline_s: float | None, settle: Callable[[Problem | None], None]
    ) -> Request:
        """Like `request`, from where an event loop runs: nobody has to call `turn` for it."""
        request = self.request(tenant, deadline_s, settle)
        if not request.settled:
            self._tick()
        return request

    def at_once(self, tenant: str) -> Problem | None:
        """Let in a call that is over before the loop's turn is; return None, or why not."""
        if not self.places:
            self._refused["pressure"] += 1
            return _problem("pressure", math.inf)
        if self.shares.refuses(tenant):
            self._refused["line"] += 1
            return _problem("line", self.shares.wait_s(tenant))
        self._admitted += 1
        self._at_once += 1
        return None

    def was_long(self) -> None:
        """What `at_once` let in was not made: it will ask for a place."""
        self._admitted -= 1
        self._at_once -= 1

    def _tick(self) -> None:
        if not self._ticking and self._waiting:
            self._ticking = True
            asyncio.get_running_loop().call_later(_TICK_S, self._ticked)

    def _ticked(self) -> None:
        self._ticking = False
        self.turn()
        self._tick()

    # ---- what that is made of ----

    def request(
        self, tenant: str, deadline_s: float | None, settle: Callable[[Problem | None], None]
    ) -> Request:
        """A request comes. `settle` is called with None when it may start, with a problem when it may not.

        Either may happen before this returns; `settle` does nothing here itself. `finish` it whatever
        happens.
        """
        now_s = self._clock()
        line = self._line_of(tenant, now_s)
        deadline_at_s = math.inf if deadline_s is None else now_s + deadline_s
        request = Request(line, now_s, deadline_at_s, settle)
        self._came(line, now_s)
        if not self._waiting and now_s < deadline_at_s and self._in_flight < self.places:
            self._let_in(request, now_s)  # as `turn` would
            return request
        problem = self._not(line, "deadline") if now_s >= deadline_at_s else self._turned_away(line)
        if problem is None:
            line.waiting.append(request)
            self._wanting[line] = None
            self._waiting += 1
            self.turn()
        else:
            request.settle(problem)
            self._rest(line, now_s)
            if not self.places:
                self.turn()  # those in line as well
        return request

    def turn_away(self, tenant: str) -> Problem | None:
        """Return why a request that comes now is refused at once, and count it; None: it may ask."""
        line = self._lines.get(tenant)
        problem = None if line is None else self._turned_away(line)
        if line is not None and problem is not None:
            self._came(line, self._clock())
        return problem

    def finish(self, request: Request, *, done: bool) -> None:
        """A request has ended, or does not want to wait any more.

        Args:
            done: whether it ended as it should.
        """
        line = request.line
        if request.started_s is not None:
            now_s = self._clock()
            elapsed_s = now_s - request.started_s
            self._limit.sample(now_s, elapsed_s, self._in_flight, done=done)
            line.takes_s = elapsed_s if line.takes_s is None else (7 * line.takes_s + elapsed_s) / 8
            request.started_s = None
            line.in_flight -= 1
            self._in_flight -= 1
            self._held = None
        elif not request.settled:
            request.settled = True
            self._take(request)
        else:
            return  # refused
        self._rest(line, self._clock())
        self.turn()

    def turn(self) -> None:
        """Refuse what has waited too long, then start what there are places for."""
        if not self._waiting:
            return
        now_s = self._clock()
        places = self.places
        if not places or now_s - self._swept_s >= _TICK_S:
            self._swept_s = now_s
            for line in list(self._wanting):
                self._expire(line, now_s, places)
        while self._wanting:  # linear in tenants that wait: one look for each free place
            line = min(self._wanting, key=Line.turn)
            if self._in_flight >= places and not self._reserved_for(line, places):
                break
            self._start(line, now_s)

    # ---- arithmetic ----

    @property
    def places(self) -> int:
        """Requests that may be in service at once, now."""
        left = _AT_LEVEL[self._pressure()]
        return math.ceil(self._limit.value * left)

    def _reserved_for(self, line: Line, places: int) -> bool:
        """Whether a tenant below its share may start, though the limit is reached.

        What others have above their shares does not count: they had it before the limit fell, or
        before this tenant came, and may keep it for minutes.
        """
        each = places / self._weights
        if line.in_flight + 1 > max(1.0, each * line.weight):
            return False
        if self._held is None:
            self._held = sum(
                min(one.in_flight, max(1.0, each * one.weight)) for one in self._lines.values()
            )
        return self._held < places + math.ceil(places * _RESERVE)

    def _bound_s(self, line: Line) -> float:
        """How long a request may wait in this line."""
        return self._bound_under_load_s() if line.overloaded else self._wait_s

    def _bound_under_load_s(self) -> float:
        half_s = (self._limit.least_s or self._wait_s) / 2
        return min(self._wait_s, max(_LEAST_BOUND_S, min(half_s, _ENOUGH_IN_LINE * self._every_s)))

    def _wait_for(self, line: Line) -> float:
        """How long one more in this line would wait, by what is known."""
        places = self.places
        if not places:
            return math.inf
        if not self._waiting and self._in_flight < places:
            return 0.0
        each_s = line.takes_s or self._limit.typical_s
        if each_s is None:
            return 0.0
        rate_per_s = places / max(each_s, 1e-9)
        if line.waiting:  # each of its turns comes once in so many
            wanting = sum(one.weight for one in self._wanting)
            return (len(line.waiting) + 1) / (rate_per_s * line.weight / wanting)
        if self._reserved_for(line, places):
            return 0.0
        turn = line.turn()
        return (1 + sum(one.turn() <= turn for one in self._wanting)) / rate_per_s

    # ---- one line ----

    def _came(self, line: Line, now_s: float) -> None:
        line.came(now_s, self._window_s)
        passed_s, self._came_s = min(now_s - self._came_s, _MOST_BETWEEN_S), now_s
        self._every_s += (passed_s - self._every_s) / 32

    def _turned_away(self, line: Line) -> Problem | None:
        wait_s = self._wait_for(line)
        if wait_s <= self._bound_s(line):
            return None
        return self._not(line, "line" if self.places else "pressure", wait_s)

    def _not(self, line: Line, why: str, wait_s: float | None = None) -> Problem:
        self._refused[why] += 1
        return _problem(why, self._wait_for(line) if wait_s is None else wait_s)

    def _start(self, line: Line, now_s: float) -> None:
        request = line.waiting[0]
        why = self._too_late(request, now_s)
        if why is not None:
            self._refuse(request, why)
            self._rest(line, now_s)
            return
        self._take(request)
        self._let_in(request, now_s)

    def _let_in(self, request: Request, now_s: float) -> None:
        line = request.line
        line.in_flight += 1
        self._held = None
        line.served += 1 / line.weight
        self._served = line.served
        self._in_flight += 1
        self._admitted += 1
        request.started_s = now_s
        if now_s - request.arrived_s <= 2 * self._bound_under_load_s():
            line.started_soon()
        request.settle(None)

    def _too_late(self, request: Request, now_s: float) -> str | None:
        if now_s >= request.deadline_at_s:
            return "deadline"
        return "late" if now_s - request.arrived_s >= self._bound_s(request.line) else None

    def _expire(self, line: Line, now_s: float, places: int) -> None:
        for request in list(line.waiting):
            why = self._too_late(request, now_s) if places else "pressure"
            if why is not None:
                self._refuse(request, why)
        self._rest(line, now_s)

    def _refuse(self, request: Request, why: str) -> None:
        self._take(request)
        request.settle(self._not(request.line, why))

    def _take(self, request: Request) -> None:
        """Take it out of its line."""
        line = request.line
        line.waiting.remove(request)
        self._waiting -= 1
        if not line.waiting:
            del self._wanting[line]

    def _line_of(self, tenant: str, now_s: float) -> Line:
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = Line(tenant, self._terms(tenant).weight, self._served)
            self._weights += line.weight
            self._held = None
        elif self._resting.pop(line, None) is not None:
            line.served = max(line.served, self._served)  # time without wishes is no credit
        if self._resting:  # one for each that comes, so that they never become many
            oldest, since_s = next(iter(self._resting.items()))
            if now_s - since_s > _REST_S:
                del self._resting[oldest], self._lines[oldest.tenant]
                self._weights -= oldest.weight
                self._held = None
        return line

    def _rest(self, line: Line, now_s: float) -> None:
        """What is known of a line stays for a while: of refusals alone nothing would be left at all."""
        if not line.waiting and not line.in_flight:
            self._resting.pop(line, None)
            self._resting[line] = now_s


class _Visit:
    """One request's time in the service. Most are let in at once, and wait for nothing."""

    __slots__ = ("_admission", "_deadline_s", "_problem", "_request", "_tenant", "_turn")

    def __init__(self, admission: Admission, tenant: str, deadline_s: float | None) -> None:
        self._admission, self._tenant, self._deadline_s = admission, tenant, deadline_s
        self._turn: asyncio.Future[None] | None = None
        self._problem: Problem | None = None

    def _settle(self, problem: Problem | None) -> None:
        self._problem = problem
        if self._turn is not None and not self._turn.done():  # else its task was cancelled
            self._turn.set_result(None)

    async def __aenter__(self) -> None:
        request = self._request = self._admission.ask(self._tenant, self._deadline_s, self._settle)
        try:
            if not request.settled:
                self._turn = asyncio.get_running_loop().create_future()
                await self._turn
            if self._problem is not None:
                raise self._problem
        except BaseException:
            self._problem = None  # its traceback has this frame: a cycle for each refusal
            self._admission.finish(request, done=False)
            raise

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._admission.finish(self._request, done=error is None)


def _problem(why: str, wait_s: float) -> Problem:
    if why == "deadline":
        return DeadlinePassed("the request's time was over before its turn")
    if why == "pressure":
        return TooMany("the service is short of memory", retry_after_s=_HINT_UNDER_PRESSURE_S)
    hint_s = max(_LEAST_HINT_S, min(_MOST_HINT_S, 2 * wait_s))
    return TooMany("there is more to do than can be done in time", retry_after_s=hint_s)
