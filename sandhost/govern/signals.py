"""What tells that memory gets short. A signal looks at readings and has an opinion; it has no clock.

pressure.signals.append(MySignal())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ..units import format_bytes
from .ladder import Level, Opinion, Thresholds

__all__ = ["GroupHits", "LiveHandles", "Reading", "Signal", "Stall", "TimeToLimit", "Usage"]


class Reading(NamedTuple):
    """What is known at one moment. Bytes and seconds; None: this system does not say."""

    now_s: float
    limit_bytes: int | None
    """What the process may have resident."""
    resident_bytes: int | None
    group_limit_bytes: int | None = None
    """The cgroup's limit."""
    group_bytes: int | None = None
    """Used in the cgroup, less idle files."""
    group_hits: int | None = None
    """Counter: how often the group met its limit."""
    stall_s: float | None = None
    """Counter: time in which something waited for memory."""
    handle_limit_bytes: int | None = None
    handle_live_bytes: int | None = None
    """What the last collection of handles left."""

    @property
    def fullest(self) -> tuple[float, str]:
        """How much of its limit the fuller one of process and cgroup uses, and in words."""
        process = _part("the process", self.resident_bytes, self.limit_bytes)
        return max(process, _part("its cgroup", self.group_bytes, self.group_limit_bytes))


def _part(whose: str, used: int | None, limit: int | None) -> tuple[float, str]:
    if used is None or not limit:
        return 0.0, f"{whose} has no limit"
    part = used / limit
    return part, f"{whose} uses {part:.1%} of {format_bytes(limit)}"


class Signal(ABC):
    """Something that may ask for a level. Asked on the controller's thread."""

    name: str = "custom"

    @abstractmethod
    def look(self, reading: Reading) -> Opinion:
        """Say what this reading, and those before it, mean."""

    def _calm(self, why: str = "") -> Opinion:
        return Opinion(self.name, Level.CALM, Level.CALM, why)


class Usage(Signal):
    """How full process and cgroup are."""

    name = "usage"

    def __init__(self, thresholds: Thresholds, gap: float = 0.05) -> None:
        self.thresholds, self.gap = thresholds.checked(), gap

    def look(self, reading: Reading) -> Opinion:
        """The fuller one's level."""
        part, why = reading.fullest
        level = self.thresholds.level
        return Opinion(self.name, level(part), level(part + self.gap), why)


class TimeToLimit(Signal):
    """When the limit will be reached if memory grows on as it did in the last second.

    Asks for one level more than is reached, as a burst may pass several thresholds between two looks.
    """

    name = "time to limit"

    def __init__(self, horizon_s: float = 1.0, window_s: float = 1.0, above: float = 0.5) -> None:
        self.horizon_s, self.window_s, self.above = horizon_s, window_s, above
        self._points: deque[tuple[float, float]] = deque()

    def look(self, reading: Reading) -> Opinion:
        """EVICT within the horizon, REFUSE within a quarter of it; nothing below half of the limit."""
        part, _ = reading.fullest
        points = self._points
        points.append((reading.now_s, part))
        while points[0][0] < reading.now_s - self.window_s:
            points.popleft()
        # What grew and stopped is not growing: the last quarter of the window has to say so as well.
        lately = [point for point in points if point[0] >= reading.now_s - self.window_s / 4]
        slope = min(_slope(points), _slope(lately))
        if slope <= 0 or part < self.above:
            return self._calm("not growing")
        left_s = max(0.0, 1 - part) / slope
        why = f"the limit is {left_s:.2f} s away at this growth"
        return Opinion(self.name, self._level(left_s), self._level(left_s / 2), why)

    def _level(self, left_s: float) -> Level:
        return Level((left_s < self.horizon_s) + (left_s < self.horizon_s / 4))


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope of (seconds, part); 0 for fewer than three points."""
    count = len(points)
    if count < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


class _OverWindow(Signal):
    """How fast a counter grows, over a window of time."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._points: deque[tuple[float, float]] = deque()

    def _growth(self, now_s: float, counter: float) -> tuple[float, float]:
        """Return by how much it grew, and in how many seconds."""
        points = self._points
        points.append((now_s, counter))
        while len(points) > 1 and points[1][0] <= now_s - self.window_s:
            points.popleft()
        return counter - points[0][1], now_s - points[0][0]


class Stall(_OverWindow):
    """How much of its time something waits for memory (pressure stall information, "some").

    It may be other processes' doing where no cgroup is this one's own; so it never ends guests.
    """

    name = "stall"

    def __init__(self, window_s: float = 1.0, evict: float = 0.1, refuse: float = 0.4) -> None:
        super().__init__(window_s)
        self.evict, self.refuse = evict, refuse

    def look(self, reading: Reading) -> Opinion:
        """EVICT from a tenth of the time on, REFUSE from four tenths on."""
        if reading.stall_s is None:
            return self._calm("the kernel does not say")
        stalled_s, of_s = self._growth(reading.now_s, reading.stall_s)
        if of_s < self.window_s / 4:
            return self._calm("too early to say")
        part = stalled_s / of_s
        why = f"{part:.0%} of the time something waits for memory"
        return Opinion(self.name, self._level(part), self._level(part * 2), why)

    def _level(self, part: float) -> Level:
        return Level((part >= self.evict) + (part >= self.refuse))


class GroupHits(_OverWindow):
    """The cgroup met its limit: the kernel is reclaiming, or about to kill."""

    name = "cgroup events"

    def __init__(self, window_s: float = 1.0) -> None:
        super().__init__(window_s)

    def look(self, reading: Reading) -> Opinion:
        """RELEASE for as long as a hit lies in the window."""
        if reading.group_hits is None:
            return self._calm("in no cgroup")
        hits, _ = self._growth(reading.now_s, reading.group_hits)
        level = Level.RELEASE if hits else Level.CALM
        return Opinion(self.name, level, level, f"the cgroup met its limit {hits:.0f} times")


class LiveHandles(Signal):
    """What collections leave of the objects behind handles, beside their limit: no garbage is in it."""

    name = "live handles"

    def __init__(self, thresholds: Thresholds, gap: float = 0.05) -> None:
        self.thresholds, self.gap = thresholds.checked(), gap

    def look(self, reading: Reading) -> Opinion:
        """At most REFUSE: the limit itself refuses more objects."""
        live, limit = reading.handle_live_bytes, reading.handle_limit_bytes
        part, why = _part("what handles keep alive", live, limit)
        asks, holds = (self.thresholds.level(p) for p in (part, part + self.gap))
        most = Level.REFUSE
        return Opinion(self.name, min(asks, most), min(holds, most), why)
