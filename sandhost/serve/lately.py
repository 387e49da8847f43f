"""Who used much of the loop's time lately: half more than what those who used some did on average, and a good part.

    a ▒                  b ▒▒               c ▒▒▒▒▒▒▒▒▒▒▒▒     of a tenth of a second
                             ╎ average ╎ half more

Whoever used less goes before those: his work is over soon, and they hardly feel it. What was had so far says who asks
for little, as nothing else does beforehand (the least attained service first; Nuyens and Wierman, "The
Foreground-Background queue", 2008). Where all use as much nobody uses much.
"""

from __future__ import annotations

import math

__all__ = ["Lately", "Use"]

_WINDOW_S = 0.1
_MUCH = 1.5
"""Arbitrary. Of equal tenants that ask at random hardly any uses so much."""
_LEAST_MUCH = 0.04
"""Of the loop's time. What one tenant of twenty asks for at random differs by less."""
_STILL_S = 0.02
"""For how long after a request of who uses little another one is expected. Arbitrary."""


class Use:
    """What one tenant used."""

    __slots__ = ("is_much", "window", "window_s")

    def __init__(self) -> None:
        self.window, self.window_s = -1, 0.0
        self.is_much = False  # in that window, or the one before it


class Lately:
    """Use of the loop by all of them. Times are given, so that days can be simulated."""

    def __init__(self) -> None:
        self._window, self._ends_s = 0, -math.inf
        self._used_s, self._users = 0.0, 0  # in this window
        self._much_s = math.inf  # by the one before
        self.little_s = -math.inf
        """When somebody who uses little used some."""

    def charge(self, use: Use, seconds: float, now_s: float) -> None:
        """Note a use of it."""
        if now_s >= self._ends_s:
            self._next_window(now_s)
        if use.window != self._window:
            use.is_much = use.window == self._window - 1 and use.window_s > self._much_s
            use.window, use.window_s = self._window, 0.0
            self._users += 1
        use.window_s += seconds
        self._used_s += seconds
        if use.window_s > self._much_s:
            use.is_much = True
        if not use.is_much:
            self.little_s = now_s

    def gives_way(self, use: Use, now_s: float) -> bool:
        """Whether one who uses little is to be expected, and this is no such."""
        return use.is_much and now_s < self.little_s + _STILL_S and use.window >= self._window - 1

    def _next_window(self, now_s: float) -> None:
        known = self._users and now_s < self._ends_s + _WINDOW_S
        average_s = self._used_s / self._users if known else math.inf
        self._much_s = max(_MUCH * average_s, _LEAST_MUCH * _WINDOW_S)
        self._window += 1 if known else 2
        self._ends_s = now_s + _WINDOW_S
        self._used_s, self._users = 0.0, 0
