"""The reader of a host's rings of events: for programs, and for the log."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .._ffi import failure, ffi, lib
from ..errors import ConfigError, SandhostError
from .kinds import KINDS, Event, bits, decoder, logged
from .log import EventLog

__all__ = ["Events"]

_BATCH = 4096
_MOST_BATCHES = (
    64  # of one look: about all that the rings hold, and not what comes meanwhile for ever
)
_MOST_UNREAD = 1 << 18  # events that wait in Python for `read`. Arbitrary
_PER_HANDLE = frozenset({"handle_alloc", "handle_free"})
_ORDINARY = frozenset(KINDS) - _PER_HANDLE


class Events:
    """What happens to a host's guests, memory and handles. Made by the host, as `host.events`.

    Nothing is recorded until a kind is enabled, and then costs the thread to which it happens a record
    of 64 bytes. Threads never wait: a ring of 8,192 records that nobody reads in time refuses what
    comes, and counts it (`lost`).
    """

    def __init__(
        self,
        native_host: Any,
        plugins: Mapping[int, str],
        tenants: Mapping[int, str],
    ) -> None:
        self._native = native_host
        self._decode = decoder(plugins, tenants)
        self._records = ffi.new(f"sh_event[{_BATCH}]")
        self._buffer = ffi.buffer(self._records)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._wanted: frozenset[str] = frozenset()
        self._unread: deque[Event] = deque()
        self._dropped: Counter[str] = Counter()
        self._log: EventLog | None = None
        self._ended = threading.Event()

    # ---- what is recorded ----

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds that `read` and `follow` give."""
        return self._wanted

    def enable(self, *kinds: str) -> None:
        """Record these kinds too; without any: all but "handle_alloc" and "handle_free".

        Those two come with every handle, and are recorded only when they are named.

        Raises:
            ConfigError: there is no such kind.
            NativeError: no memory for the rings.
        """
        self._listen(self._wanted | (_known(kinds) or _ORDINARY), self._log)

    def disable(self, *kinds: str) -> None:
        """Record these kinds no more, or none. What was recorded can still be read."""
        self._listen(self._wanted - (_known(kinds) or frozenset(KINDS)), self._log)

    def _listen(self, wanted: frozenset[str], log: EventLog | None) -> None:
        self._check_process()
        before = self._log
        with self._lock:
            every = wanted | (log.kinds if log is not None else frozenset())
            if lib.sh_events_listen(self._native, bits(every)):
                raise failure()
            self._wanted |= wanted
            self._look()  # what was recorded so far is for who wanted it
            self._wanted, self._log = wanted, log
        if before is not None and before is not log:
            before.stop()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise SandhostError("this process was forked from the one that has the events")

    # ---- reading ----

    def read(self) -> list[Event]:
        """Take what has happened since the last look, the oldest first. Several threads share what there is."""
        if os.getpid() != self._pid:
            return []
        with self._lock:
            self._look()
            events = list(self._unread)
            self._unread.clear()
        return events

    def follow(self, *, poll_s: float = 0.02, timeout_s: float | None = None) -> Iterator[Event]:
        """Iterate over what happens, until the host is closed.

        Args:
            poll_s: how long to sleep when there is nothing.
            timeout_s: end after so long without an event; None: never.

        Raises:
            ConfigError: no kind is enabled.
        """
        if not self._wanted:
            raise ConfigError("no kind of event is recorded; call host.events.enable() first")
        return self._follow(poll_s, timeout_s)

    def _follow(self, poll_s: float, timeout_s: float | None) -> Iterator[Event]:
        heard_s = time.monotonic()
        while os.getpid() == self._pid:
            try:
                event = self._unread.popleft()  # one by one: who stops following leaves the rest
            except IndexError:
                over = self._ended.is_set()  # asked first: what came before the end is still given
                with self._lock:
                    self._look()
                if self._unread:
                    continue
                if over or (timeout_s is not None and time.monotonic() - heard_s > timeout_s):
                    return
                self._ended.wait(poll_s)
            else:
                yield event
                heard_s = time.monotonic()

    def _look(self) -> None:
        """Take what the rings hold, to where it is wanted. Under the lock."""
        log, wanted = self._log, bits(self._wanted)
        limits = ffi.NULL if log is None else log.limits
        for _ in range(_MOST_BATCHES):
            count = lib.sh_events_read(self._native, self._records, _BATCH, wanted, limits)
            if not count:  # ten looks a second of who logs trouble: nearly all
                return
            records = self._buffer[: count * ffi.sizeof("sh_event")]
            events = self._decode(records)
            if log is not None:
                log.take(itertools.compress(events, logged(records)))
            self._keep(event for event in events if event.kind in self._wanted)
            if count < _BATCH:
                return

    def _keep(self, events: Iterable[Event]) -> None:
        events = iter(events)
        self._unread.extend(itertools.islice(events, max(0, _MOST_UNREAD - len(self._unread))))
        self._dropped.update(event.kind for event in events)

    @property
    def lost(self) -> dict[str, int]:
        """Events that nobody read in time, by kind, exactly; kinds of which none was lost are left out."""
        by_kind = ffi.new("uint64_t[]", lib.SH_EVENT_KINDS)
        lib.sh_events_lost(self._native, by_kind)
        lost = {kind: by_kind[number] + self._dropped[kind] for kind, number in KINDS.items()}
        return {kind: count for kind, count in lost.items() if count}

    # ---- logging ----

    def log(self, levels: Mapping[str, str], *, per_second: int = 10) -> None:
        """Log these kinds at these levels, for example `{"trap": "warning", "close": "debug"}`.

        A thread looks ten times a second and logs to "sandhost.events", through structlog and the
        standard library. What `read` and `follow` give stays the same. An empty mapping ends it.

        Args:
            per_second: of one kind, no more are logged; how many were left out is logged instead.

        Raises:
            ConfigError: there is no such kind or level, or `per_second` is less than 1.
        """
        log = EventLog(levels, per_second, _known(levels)) if levels else None
        self._listen(self._wanted, log)
        if log is not None:
            log.start(self)

    @property
    def suppressed(self) -> dict[str, int]:
        """Events that the present log has left out, by kind."""
        return self._log.suppressed if self._log is not None else {}

    def look(self) -> None:
        """Take what has happened. Not for users: the thread that logs does."""
        with self._lock:
            self._look()

    def close(self) -> None:
        """Log what is left and end the thread; `follow` ends. The host does this when it is closed."""
        self._ended.set()
        if self._log is not None and os.getpid() == self._pid:
            self._log.stop()


def _known(kinds: Iterable[str]) -> frozenset[str]:
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"there is no event {kind!r:.100}; choose of {', '.join(KINDS)}")
    return frozenset(kinds)
