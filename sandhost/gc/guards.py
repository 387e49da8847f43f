"""Guards against the traps of a collector in the user's hands: a budget, and settings that come back.

Neither has a lock or a clock: the collector holds the one and passes the other's time in.
"""

from __future__ import annotations

from ..errors import ConfigError
from ..units import parse_seconds

__all__ = ["ForcedBudget", "Overrides"]


class ForcedBudget:
    """How many forced collections are reasonable: `cycles` at once, and as many again each `period`.

    A program that forces a collection every few operations spends its time collecting. Beyond the
    budget each one is counted, and logged once a period; with `defer` it is not run at once, but
    when the budget has room again, and `collect()` returns None.

    Raises:
        ConfigError: a value cannot be meant.
    """

    def __init__(
        self, cycles: int = 60, period: float | str = "1 min", *, defer: bool = False
    ) -> None:
        self.cycles, self.period_s, self.defer = cycles, parse_seconds(period), defer
        if cycles < 1 or not self.period_s:
            raise ConfigError(f"a budget of {cycles} cycles in {period!r} allows none")
        self._left = float(cycles)
        self._at_s: float | None = None
        self._warned_s: float | None = None

    def take(self, now_s: float) -> bool:
        """Take one cycle out; False: there is none left."""
        self._refill(now_s)
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def wait_s(self, now_s: float) -> float:
        """Return after how many seconds there will be one; 0: now."""
        self._refill(now_s)
        return max(1 - self._left, 0.0) * self.period_s / self.cycles

    def may_warn(self, now_s: float) -> bool:
        """Return whether the last warning is a period ago, and note this one."""
        if self._warned_s is not None and now_s < self._warned_s + self.period_s:
            return False
        self._warned_s = now_s
        return True

    def _refill(self, now_s: float) -> None:
        if self._at_s is not None:
            earned = max(now_s - self._at_s, 0.0) * self.cycles / self.period_s
            # A little more than earned, or rounding would leave the last cycle a hair short of whole.
            self._left = min(self._left + earned + 1e-9, float(self.cycles))
        self._at_s = now_s


class Override:
    """A `with` block in force: a percent, or a pause (percent None)."""

    __slots__ = ("began_s", "pause", "percent", "reported")

    def __init__(self, began_s: float, percent: float | None, *, pause: bool) -> None:
        self.began_s, self.percent, self.pause = began_s, percent, pause
        self.reported = False


class Overrides:
    """The blocks in force. Each takes out only itself, so they may end in any order, on any thread.

    A pause beats every percent; of percents the latest holds; without any, the base.
    """

    def __init__(self) -> None:
        self._all: list[Override] = []

    def add(self, override: Override) -> None:
        """Put one into force."""
        self._all.append(override)

    def remove(self, override: Override) -> None:
        """Take it out of force."""
        self._all.remove(override)

    @property
    def paused(self) -> bool:
        """Whether a pause is in force."""
        return any(override.pause for override in self._all)

    def percent(self, base: float | None) -> float | None:
        """Return the percent that holds."""
        if self.paused:
            return None
        return self._all[-1].percent if self._all else base

    def pauses(self) -> list[Override]:
        """Return the pauses in force, the oldest first."""
        return [override for override in self._all if override.pause]
