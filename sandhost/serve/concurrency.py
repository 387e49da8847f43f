"""How many requests may be in service at once, learned from how long they take. No clock.

While a service has room, more requests at once do not make each take longer. When it has none, they only
wait for each other: latency grows, throughput does not. So the latency of now, against the least of late,
says whether the limit is too high. Medians of a tenth of a second: a few requests that take minutes say
nothing about the others.

    gradient = 1.25 · least / now, within 0.5 … 1          1: nobody waits for anybody
    limit   += 0.5 · (limit · gradient + ½√limit - limit)

This is the gradient of Netflix's concurrency-limits, an offspring of TCP Vegas (Brakmo and Peterson, 1994);
the ½√limit are the requests that it lets queue inside, to find room that has become free. (With all of
√limit nothing below 4 was ever reached; that fewer are better for one loop is not measured.) A least that is
old is no longer known to be true, and while the limit is reached nothing would show it: then half the limit
is tried for a moment, as BBR does (Cardwell et al., 2016).
"""

from __future__ import annotations

import math
import statistics

from ..errors import ConfigError

__all__ = ["AdaptiveLimit"]

_WINDOW_S, _WINDOW_SAMPLES = 0.1, 25
"""A window ends when both are there. Arbitrary; fewer samples are mostly noise."""
_TOLERANCE = 1.25
"""Latency that is taken for noise."""
_SMOOTHING = 0.5
_LEAST_AGE_S = 10.0
_PROBE_WINDOWS = 2
"""The requests of the first began before the probe."""


class AdaptiveLimit:
    """A limit between `least` and `most` that begins at `initial`.

    Invariant: least <= value <= most; half of least, and 1, while it looks what requests take with fewer.
    """

    def __init__(self, initial: int = 20, least: int = 2, most: int = 1000) -> None:
        if not 1 <= least <= initial <= most:
            raise ConfigError(
                f"a limit's least, initial and most are in this order, from 1: {least}, {initial}, {most}"
            )
        self._least, self._most = least, most
        self._limit = float(initial)
        self.least_s: float | None = None
        """The least median latency of late, None before anything was measured."""
        self.typical_s: float | None = None
        """The median latency of the last window."""
        self._least_at_s = 0.0
        self._since_s = 0.0  # when the window of now began
        self._samples: list[float] = []
        self._peak = 0
        self._probe_windows = 0
        self._before_probe = 0.0

    @property
    def value(self) -> int:
        """The limit of now."""
        return int(self._limit)

    def sample(self, now_s: float, elapsed_s: float, in_flight: int, *, done: bool = True) -> None:
        """Take note of a request that has ended.

        Args:
            in_flight: requests in service, with this one.
            done: whether it ended as requests should. What failed counts when it took long: then it was
                ended for that, and would have taken longer.
        """
        if not done and elapsed_s < (self.typical_s or math.inf):
            return
        if not self._samples:
            self._since_s, self._peak = now_s, 0
        self._samples.append(elapsed_s)
        self._peak = max(self._peak, in_flight)
        if len(self._samples) >= _WINDOW_SAMPLES and now_s - self._since_s >= _WINDOW_S:
            median_s = statistics.median(self._samples)
            self._samples.clear()
            self._end_window(now_s, median_s, self._peak)

    def _end_window(self, now_s: float, median_s: float, peak: int) -> None:
        self.typical_s = median_s
        if self._probe_windows:
            self._probe_windows -= 1
            if not self._probe_windows:
                self._learn(now_s, median_s)
                self._limit = self._before_probe
            return
        if self.least_s is None or median_s < self.least_s:
            self._learn(now_s, median_s)
        reached = 2 * peak >= self._limit
        if now_s - self._least_at_s >= _LEAST_AGE_S:
            if reached:
                self._probe_windows, self._before_probe = _PROBE_WINDOWS, self._limit
                # Below its least as well: with so many, too, requests may wait for each other.
                self._limit = max(1.0, self._limit / 2)
                return
            self._learn(now_s, median_s)
        if reached and median_s > 0:  # else nothing shows what more would do
            assert self.least_s is not None
            gradient = max(0.5, min(1.0, _TOLERANCE * self.least_s / median_s))
            wanted = self._limit * gradient + math.sqrt(self._limit) / 2
            self._set(self._limit + _SMOOTHING * (wanted - self._limit))

    def _learn(self, now_s: float, median_s: float) -> None:
        self.least_s, self._least_at_s = median_s, now_s

    def _set(self, limit: float) -> None:
        self._limit = max(float(self._least), min(float(self._most), limit))
