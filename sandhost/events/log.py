"""Events as lines of a log: at chosen levels, and never more than so many a second of a kind."""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .._ffi import ffi
from .._log import get_logger
from ..errors import ConfigError, printable
from .kinds import KINDS, Event, bits

if TYPE_CHECKING:
    from .stream import Events

__all__ = ["EventLog"]

_LOGGER = "sandhost.events"
_LEVELS = ("debug", "info", "warning", "error", "critical")
_LOOK_EVERY_S = 0.1
_EVERY = 1 << 63


class EventLog:
    """What waits to be logged, and how much is not for there is too much of it.

    Guests decide how often they trap, so a second of the events' own time lets through `per_second` of
    each kind. C counts the rest where it lies: a flood never becomes objects.
    """

    def __init__(self, levels: Mapping[str, str], per_second: int, kinds: frozenset[str]) -> None:
        for kind, level in levels.items():
            if level not in _LEVELS:
                raise ConfigError(
                    f"the level of {kind} is {level!r:.100}; choose one of {', '.join(_LEVELS)}"
                )
        if not isinstance(per_second, int) or per_second < 1:
            raise ConfigError(f"per_second is {per_second!r:.100}; give 1 or more")
        self.kinds = kinds
        most = min(per_second, _EVERY)
        self.limits = ffi.new("sh_event_log *", {"kinds": bits(kinds), "most": most})
        self._levels = dict(levels)
        self._waiting: deque[Event] = deque()
        self._said: Counter[str] = Counter()
        self._said_lost: Counter[str] = Counter()
        self._said_s = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, events: Events) -> None:
        """Start the thread that logs what happens."""
        arguments = (weakref.ref(events), self, self._stop)
        self._thread = threading.Thread(
            target=_log_on, args=arguments, name="sandhost-events", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Log what is left, and end the thread. Idempotent."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def take(self, events: Iterable[Event]) -> None:
        """Keep what is to be logged."""
        self._waiting.extend(events)

    @property
    def suppressed(self) -> dict[str, int]:
        """Events that were left out, by kind."""
        return {kind: n for kind, at in KINDS.items() if (n := self.limits.suppressed[at])}

    def flush(self, events: Events, *, last: bool) -> None:
        """Log what was kept; once a second, and at the `last`, also how much was not. By one thread."""
        due = last or time.monotonic() - self._said_s >= 1
        if not self._waiting and not due:
            return
        logger = get_logger(_LOGGER)
        while self._waiting:
            event = self._waiting.popleft()
            fields = {
                name: printable(value) if isinstance(value, str) else value
                for name, value in event._asdict().items()
                if value is not None and name != "kind"
            }
            getattr(logger, self._levels[event.kind])(event.kind, **fields)
        if not due:
            return
        self._said_s = time.monotonic()
        suppressed, lost = self.suppressed, events.lost
        for kind, level in self._levels.items():
            more = suppressed.get(kind, 0) - self._said[kind]
            if more:
                getattr(logger, level)("events not logged", kind=kind, count=more)
            self._said[kind] += more
            more = lost.get(kind, 0) - self._said_lost[kind]
            if more:
                logger.warning("events lost", kind=kind, count=more)
            self._said_lost[kind] += more


def _log_on(events: weakref.ReferenceType[Events], log: EventLog, stop: threading.Event) -> None:
    """Between two looks, hold nothing of the events."""
    last = False
    while not last:
        last = stop.wait(_LOOK_EVERY_S)
        alive = events()
        if alive is None:
            return
        try:
            alive.look()
            log.flush(alive, last=last)
        except Exception:  # noqa: BLE001 - a handler of the application's raised: shown, and the next is logged
            kind, error, traceback = sys.exc_info()
            assert kind is not None
            threading.excepthook(
                threading.ExceptHookArgs((kind, error, traceback, threading.current_thread()))
            )
        del alive
