"""What runs in a benchmark: one cycle of a guest, timed around the calls that a user writes.

    spawn ── (setup) ── call ── close
    └─spawn─┘          └─call─┘└unload┘      cycle = spawn + call + unload; setup is not timed

A contender is opened for one workload, then asked for cycles again and again, in turn with the
others. Its loop is written out, not built from callbacks: an extra Python call would cost as much
as what is measured.
"""

from __future__ import annotations

import contextlib
import functools
from array import array
from collections.abc import Callable
from time import perf_counter_ns
from typing import Protocol

from ..errors import ConfigError, GuestExit
from ..guest import Guest
from ..host import Host
from .workload import Workload

__all__ = ["OPERATIONS", "Contender", "Ours", "Samples"]

OPERATIONS = ("spawn", "call", "unload", "cycle", "reclaim")


class Samples:
    """Durations of many cycles, in nanoseconds, one array an operation."""

    def __init__(self) -> None:
        self.spawn, self.call, self.unload, self.reclaim = (array("q") for _ in range(4))

    def of(self, operation: str) -> array[int]:
        """Return the durations of one operation."""
        if operation == "cycle":
            return array("q", map(sum, zip(self.spawn, self.call, self.unload, strict=True)))
        found: array[int] = getattr(self, operation)
        return found

    def extend(self, other: Samples) -> None:
        """Add another thread's."""
        for operation in ("spawn", "call", "unload", "reclaim"):
            self.of(operation).extend(other.of(operation))


class Contender(Protocol):
    """A runtime, ready to run guests of one workload."""

    name: str
    how: str
    """The calls of its API that are timed."""

    def cycles(self, until_ns: int, samples: Samples) -> None:
        """Run cycles until `perf_counter_ns()` reaches `until_ns` (> 0), at least one."""

    def hold(self, guests: int) -> Callable[[], int | None]:
        """Bring guests to where a cycle closes them; what is returned closes them all.

        That returns the bytes which the runtime says are back, None if it does not say.
        """

    def close(self) -> None:
        """Let go of everything."""


class Ours:
    """sandhost with one reclaim policy."""

    how = "plugin.spawn() · guest.call(name, …) · guest.close()"

    def __init__(self, policy: str, workload: Workload) -> None:
        self.name = f"sandhost {policy}"
        self.policy = policy
        self._host = Host(reclaim=policy)
        self.setup = tuple((call.function, call.arguments) for call in workload.setup)
        self.invoke = (workload.invoke.function, workload.invoke.arguments)
        try:
            self.plugin = self._host.load(workload.wasm, name=workload.plugin)
            self._spawn: Callable[[], Guest] = self.plugin.spawn
            if workload.limits is not None:
                self._spawn = functools.partial(self.plugin.spawn, limits=workload.limits)
            with self.start():
                pass
        except (TypeError, OverflowError) as error:
            self.close()
            raise ConfigError(str(error)) from None
        except BaseException:
            self.close()
            raise

    def cycles(self, until_ns: int, samples: Samples) -> None:
        """See `Contender`."""
        clock, spawn, setup = perf_counter_ns, self._spawn, self.setup
        name, arguments = self.invoke
        spawned, called, unloaded, reclaimed = (
            samples.spawn.append,
            samples.call.append,
            samples.unload.append,
            samples.reclaim.append,
        )
        ended = 0
        while ended < until_ns:
            started = clock()
            guest = spawn()
            spawn_ended = clock()
            for function, values in setup:
                guest.call(function, *values)
            call_started = clock()
            try:
                guest.call(name, *arguments)
            except GuestExit:
                pass  # a WASI command that says how it went
            call_ended = clock()
            reclaim = guest.close()
            ended = clock()
            spawned(spawn_ended - started)
            called(call_ended - call_started)
            unloaded(ended - call_ended)
            reclaimed(reclaim.ns)

    def hold(self, guests: int) -> Callable[[], int | None]:
        """See `Contender`."""
        live = [self.start() for _ in range(guests)]

        def close_all() -> int:
            returned = 0
            for guest in live:
                returned += guest.close().bytes
            live.clear()
            return returned

        return close_all

    def start(self) -> Guest:
        """Bring one guest to where a cycle closes it."""
        guest = self._spawn()
        try:
            for function, values in self.setup:
                guest.call(function, *values)
            with contextlib.suppress(GuestExit):
                guest.call(self.invoke[0], *self.invoke[1])
        except BaseException:
            guest.close()
            raise
        return guest

    def trim(self) -> None:
        """Let the next check begin with no memory kept from earlier guests."""
        self._host.trim()

    def close(self) -> None:
        """See `Contender`."""
        self._host.close()
