"""What may start a cycle, each under a label: built-in ones, and the user's own.

    host.gc.triggers.remove("period")
    host.gc.triggers.add(Policy("night", lambda view: is_night() and view.live_bytes > 1 << 30))

A policy decides when, and how much: True asks for a whole cycle, a number of bytes for so much of one.
It may take the place of the heap goal. It cannot take the place of the memory limit, which stands
before all others and cannot be removed.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ..errors import ConfigError
from ..units import parse_seconds

__all__ = [
    "Due",
    "HeapGoal",
    "MemoryLimit",
    "Period",
    "Policy",
    "Request",
    "Trigger",
    "Triggers",
    "View",
]


class View(NamedTuple):
    """What a trigger may look at. Bytes, and seconds of the collector's clock."""

    now_s: float
    last_cycle_s: float
    """When the last cycle ended, or the collector started."""
    cycles: int
    """Cycles that have ended."""
    live_bytes: int
    marked_bytes: int
    """What the last cycle left."""
    goal_bytes: int
    trigger_bytes: int
    """The heap size at which the pacer wants a cycle."""
    limit_bytes: int | None
    limit_trigger_bytes: int
    """The heap size at which the memory limit wants one."""
    limited: bool
    """That is because of the memory limit."""
    growing: bool
    """False while collections are paused or the percent is off."""


class Due(NamedTuple):
    """A trigger's answer: begin a cycle, or go on with one."""

    label: str
    budget_bytes: int | None
    """How much of it; None: all."""


class Trigger(ABC):
    """Something that may start a cycle. Its methods are called on the collector's thread."""

    label: str = "custom"
    """Under which its cycles are counted and traced."""
    even_paused = False
    """Whether it is looked at within `gc.paused()`."""

    @abstractmethod
    def due(self, view: View) -> bool | int:
        """Return True for a whole cycle, a number of bytes to mark, or False (0) for none."""

    def wait_s(self, view: View) -> float | None:  # noqa: ARG002
        """Return after how many seconds to look again at the latest; None: when woken."""
        return None

    def begun(self) -> None:  # noqa: B027
        """A cycle has begun, whoever asked for it."""


class MemoryLimit(Trigger):
    """The heap nears the memory limit."""

    label = "limit"
    even_paused = True

    def due(self, view: View) -> bool:
        """The heap is at the size at which a cycle can still end below the limit."""
        return view.limit_bytes is not None and view.live_bytes >= view.limit_trigger_bytes


class HeapGoal(Trigger):
    """The heap has grown by the percent: the pacer's trigger."""

    label = "heap goal"

    def due(self, view: View) -> bool:
        """The heap has reached the pacer's trigger, and it is not the limit's."""
        return view.growing and not view.limited and view.live_bytes >= view.trigger_bytes


class Period(Trigger):
    """Nothing was collected for a while, so that what a quiet program dropped comes back too."""

    label = "period"

    def __init__(self, period: float | str = 120.0) -> None:
        self.period_s = parse_seconds(period)
        if not self.period_s:
            raise ConfigError("a period is longer than 0 seconds")

    def due(self, view: View) -> bool:
        """The period is over, and something was allocated in it."""
        return self._left_s(view) <= 0 and view.live_bytes > 0

    def wait_s(self, view: View) -> float:
        """Until the period is over."""
        left_s = self._left_s(view)
        return left_s if left_s > 0 else self.period_s  # over, with nothing to collect

    def _left_s(self, view: View) -> float:
        return view.last_cycle_s + self.period_s - view.now_s


class Request(Trigger):
    """Somebody asks: `request()`, from any thread. One cycle serves all that asked before it began."""

    def __init__(self, label: str, *, even_paused: bool) -> None:
        self.label, self.even_paused = label, even_paused
        self._asked = False
        self.wake: Callable[[], None] | None = None

    def request(self) -> None:
        """Ask for a cycle, without waiting for it."""
        self._asked = True
        if self.wake is not None:
            self.wake()

    def due(self, view: View) -> bool:  # noqa: ARG002
        """Somebody asked since the last cycle began."""
        return self._asked

    def begun(self) -> None:
        """Who asked has what was asked for."""
        self._asked = False


class Policy(Trigger):
    """A function of the user's: `decide(view)` returns what `Trigger.due` does.

    It is asked whenever the collector is awake, and every `every` seconds at the latest.
    """

    def __init__(
        self, label: str, decide: Callable[[View], bool | int], every: float | str = 0.1
    ) -> None:
        self.label, self.decide, self.every_s = label, decide, parse_seconds(every)
        if not self.every_s:
            raise ConfigError("a policy is asked every so many seconds, more than 0")

    def due(self, view: View) -> bool | int:
        """Ask the user's function."""
        return self.decide(view)

    def wait_s(self, view: View) -> float:  # noqa: ARG002
        """So often as the user wants."""
        return self.every_s


class Triggers:
    """The triggers of one collector, in the order in which they are asked; the limit is the first."""

    def __init__(self, period: float | str | None = 120.0) -> None:
        self.explicit = Request("explicit", even_paused=True)
        """What `collect()` and deferred collections use."""
        self.pressure = Request("pressure", even_paused=False)
        """For whoever watches the machine's memory."""
        self.wake: Callable[[], None] = lambda: None
        """Called when a trigger may have become due. The collector sets it."""
        self._lock = threading.Lock()
        self._limit = MemoryLimit()
        self._all: tuple[Trigger, ...] = (self._limit, self.explicit, self.pressure, HeapGoal())
        if period is not None:
            self._all += (Period(period),)
        for request in (self.explicit, self.pressure):
            request.wake = self._woken

    def _woken(self) -> None:
        self.wake()

    def __iter__(self) -> Iterator[Trigger]:
        return iter(self._all)

    def __contains__(self, label: object) -> bool:
        return any(trigger.label == label for trigger in self._all)

    def add(self, trigger: Trigger) -> None:
        """Add one, to be asked after those that are there.

        Raises:
            ConfigError: its label is taken.
        """
        with self._lock:
            if trigger.label in self:
                raise ConfigError(f"there is a trigger {trigger.label!r} already: remove it first")
            self._all += (trigger,)
        self.wake()

    def remove(self, label: str) -> Trigger:
        """Take one out and return it.

        Raises:
            ConfigError: there is none of this label, or it is the memory limit's or the explicit one.
        """
        with self._lock:
            if label in (self._limit.label, self.explicit.label):
                raise ConfigError(f"the trigger {label!r} cannot be removed")
            for trigger in self._all:
                if trigger.label == label:
                    self._all = tuple(t for t in self._all if t is not trigger)
                    break
            else:
                known = ", ".join(t.label for t in self._all)
                raise ConfigError(f"there is no trigger {label!r}, only {known}")
        self.wake()
        return trigger

    def give_up(self, trigger: Trigger) -> None:
        """Take out one that failed, and put the heap goal back: something must decide."""
        with self._lock:
            self._all = tuple(t for t in self._all if t is not trigger)
            if HeapGoal.label not in self:
                self._all += (HeapGoal(),)
