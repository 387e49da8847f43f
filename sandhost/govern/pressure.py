"""The pressure controller: `host.pressure`.

    readings ──► signals ──► ladder ──► level ──► actions
      RSS, cgroup,  each an      up at     0-4       evict, refuse, release, end guests,
      PSI, handles  opinion      once                and the application's own

A sampled loop on a thread of its own: ten times a second while all is calm, a hundred times while it is
not. Everything that it does is logged, counted, and can be replaced.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

from .._log import get_logger
from ..errors import ConfigError
from .actions import Action, EndGuests, Evict, Refuse, Release
from .ladder import Ladder, Level, Opinion, Thresholds
from .protocol import Ended, Governed
from .scavenger import Scavenger
from .signals import GroupHits, LiveHandles, Signal, Stall, TimeToLimit, Usage

__all__ = ["Pressure", "PressureStats", "Transition"]

_LOGGER = "sandhost.pressure"
_CALM_S, _BUSY_S = 0.1, 0.01
_REMEMBERED = 100


class Transition(NamedTuple):
    """The level has changed."""

    at_s: float
    """By the controller's clock."""
    before: Level
    after: Level
    opinions: tuple[Opinion, ...]
    """What each signal said then."""

    @property
    def why(self) -> str:
        """The opinion that counted most."""
        most = max(self.opinions, key=lambda one: (one.asks, one.holds), default=None)
        return "" if most is None else f"{most.signal}: {most.why}"


class PressureStats(NamedTuple):
    """What a controller has seen and done. Counters, but for the level."""

    level: Level
    limit_bytes: int | None
    samples: int
    transitions: int
    seconds_at: dict[str, float]
    """By level."""
    actions: dict[str, int]
    """How often each was carried out."""
    failures: int
    """Signals and actions that raised; each was left out that once."""
    guests_ended: int
    scavenged_bytes: int
    scavenger_s: float
    """CPU time of the scavenger."""


def _daemon(run: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=run, name="sandhost-pressure", daemon=True)
    thread.start()
    return thread


class Pressure:
    """Watches memory and acts when it gets short. Safe for threads; `close()` it.

    Args:
        governed: whose memory; see protocol.py.
        limit_bytes: what the process may have resident; None: only the cgroup's limit counts.
        thresholds: where the levels begin.
        ladder: None: one that leaves a level after 0.2 s.
        clock: seconds, never going back.
        thread: starts the thread of the loop; None: nobody loops, call `turn()`.
    """

    def __init__(
        self,
        governed: Governed,
        limit_bytes: int | None,
        *,
        thresholds: Thresholds | None = None,
        ladder: Ladder | None = None,
        clock: Callable[[], float] = time.monotonic,
        thread: Callable[[Callable[[], None]], threading.Thread] | None = _daemon,
    ) -> None:
        if limit_bytes is not None and limit_bytes <= 0:
            raise ConfigError("a limit of the process's memory is more than 0 bytes")
        self.limit_bytes = limit_bytes
        """What the process may have resident. May be changed."""
        thresholds = (thresholds or Thresholds()).checked()
        self.ladder = ladder or Ladder()
        self.signals: list[Signal] = [
            Usage(thresholds),
            TimeToLimit(),
            Stall(),
            GroupHits(),
            LiveHandles(thresholds),
        ]
        """What is asked, all of them at each look. The application may add and remove."""
        self.actions: list[Action] = [
            Evict(governed),
            Refuse(governed, self._limit),
            Release(governed),
            EndGuests(governed, self._limit, self._note_ended),
        ]
        """What is done, in this order."""
        self.scavenger = Scavenger(governed.scavenge, time.thread_time)
        self.history: deque[Transition] = deque(maxlen=_REMEMBERED)
        """The last changes of the level, oldest first."""
        self.ended: deque[Ended] = deque(maxlen=_REMEMBERED)
        """The last guests that were ended for their memory."""
        self._governed, self._clock, self._start_thread = governed, clock, thread
        self._lock = threading.Lock()  # one look at a time
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._began_s = self._since_s = clock()
        self._last_act_s: dict[int, float] = {}  # by identity of the action
        self._opinions: tuple[Opinion, ...] = ()
        self._seconds_at = dict.fromkeys(Level, 0.0)
        self._counts: Counter[str] = Counter()
        self._samples = self._transitions = self._failures = self._guests_ended = 0
        self._seen_limit = limit_bytes or 0

    # ---- beginning and end ----

    def start(self) -> None:
        """Begin to watch. Idempotent."""
        if self._start_thread is None or self._thread is not None or self._closed:
            return
        me, wake = weakref.ref(self), self._wake
        self._thread = self._start_thread(lambda: _loop(me, wake))

    def close(self) -> None:
        """Stop, and take all actions back. Idempotent."""
        self._closed = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            for action in self.actions:
                if id(action) in self._last_act_s:
                    self._end(action)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __del__(self) -> None:
        if hasattr(self, "_wake"):
            self._wake.set()  # its thread holds it weakly, and finds it gone

    # ---- what users ask ----

    @property
    def level(self) -> Level:
        """How short memory is."""
        return self.ladder.level

    def explain(self) -> tuple[Opinion, ...]:
        """Return what each signal said at the last look."""
        return self._opinions

    def stats(self) -> PressureStats:
        """Return what was seen and done so far."""
        with self._lock:
            seconds = dict(self._seconds_at)
            seconds[self.level] += self._clock() - self._since_s
            return PressureStats(
                level=self.level,
                limit_bytes=self.limit_bytes,
                samples=self._samples,
                transitions=self._transitions,
                seconds_at={level.name.lower(): seconds[level] for level in Level},
                actions=dict(self._counts),
                failures=self._failures,
                guests_ended=self._guests_ended,
                scavenged_bytes=self.scavenger.given_back_bytes,
                scavenger_s=self.scavenger.used_s,
            )

    # ---- the loop ----

    def turn(self) -> float:
        """Look once, and act; return after how many seconds to look again."""
        with self._lock:
            now_s = self._clock()
            reading = self._governed.read(now_s, self.limit_bytes)
            self._seen_limit = min(
                (limit for limit in (reading.limit_bytes, reading.group_limit_bytes) if limit),
                default=0,
            )
            self._samples += 1
            self._opinions = tuple(
                opinion for signal in self.signals if (opinion := self._ask(signal, reading))
            )
            before = self.level
            after = self.ladder.update(now_s, self._opinions)
            if after != before:
                self._changed(now_s, before, after)
            for action in self.actions:
                self._carry_out(action, now_s)
            if after:
                return _BUSY_S
            return min(_CALM_S, self.scavenger.turn(now_s))

    def _limit(self) -> int:
        return self._seen_limit

    def _ask(self, signal: Signal, reading: object) -> Opinion | None:
        try:
            return signal.look(reading)  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001 - a user's signal may raise anything
            self._failures += 1
            get_logger(_LOGGER).exception("a signal failed", signal=signal.name)
            return None

    def _changed(self, now_s: float, before: Level, after: Level) -> None:
        self._seconds_at[before] += now_s - self._since_s
        self._since_s = now_s
        self._transitions += 1
        transition = Transition(now_s, before, after, self._opinions)
        self.history.append(transition)
        log = get_logger(_LOGGER)
        (log.warning if after > before else log.info)(
            "memory pressure", level=after.name, before=before.name, why=transition.why
        )

    def _carry_out(self, action: Action, now_s: float) -> None:
        last_s = self._last_act_s.get(id(action))
        if self.level < action.level:
            if last_s is not None:
                self._end(action)
            return
        if last_s is not None and now_s - last_s < action.every_s:
            return
        self._last_act_s[id(action)] = now_s
        self._counts[action.name] += 1
        try:
            result = action.act(self.level)
        except Exception:  # noqa: BLE001 - a user's action may raise anything
            self._failures += 1
            get_logger(_LOGGER).exception("an action failed", action=action.name)
            return
        if result:
            get_logger(_LOGGER).info("acted", action=action.name, result=str(result))

    def _end(self, action: Action) -> None:
        del self._last_act_s[id(action)]
        try:
            action.end()
        except Exception:  # noqa: BLE001 - a user's action may raise anything
            self._failures += 1
            get_logger(_LOGGER).exception("an action could not be ended", action=action.name)

    def _note_ended(self, ended: Ended) -> None:
        self._guests_ended += 1
        self.ended.append(ended)
        get_logger(_LOGGER).warning("a guest was ended", why=str(ended), **ended._asdict())


def _loop(me: weakref.ref[Pressure], wake: threading.Event) -> None:
    while (pressure := me()) is not None and not pressure.closed:
        wait_s = pressure.turn()
        del pressure
        wake.wait(wait_s)
        wake.clear()
