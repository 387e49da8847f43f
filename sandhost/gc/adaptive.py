"""A percent that follows the growth of the heap: rooms to grow when it is quiet, short ones when not.

percent
200 ┤───╮
150 ┤    ╲            percent = 150 - 50 * (r - 0.01) / 0.02, held within 50 and 200
100 ┤     ╲           r: growth in MB/ms (1 MB = 10^6 bytes)
 50 ┤      ╰────────
    └───┼──┼──┼─────
     -.01 .01 .05  r
"""

from __future__ import annotations

from collections import deque

__all__ = ["AdaptivePercent", "percent_of"]

_WINDOWS = 3
_STEP = 25


def percent_of(growth_mb_per_ms: float) -> float:
    """Return the percent for a growth rate."""
    return min(max(150 - 50 * (growth_mb_per_ms - 0.01) / 0.02, 50.0), 200.0)


class AdaptivePercent:
    """Turns windows of time, each with the growth of the live heap in it, into a percent.

    The rate is the median of the last three windows, so that one burst, or the drop at the end of
    one cycle, moves nothing. A window moves the percent by at most 25, so it does not swing with
    every phase of a load. Where the memory limit asks for a smaller goal, the pacer takes that one.
    """

    def __init__(self, percent: int = 100) -> None:
        self.percent = percent
        self._rates: deque[float] = deque(maxlen=_WINDOWS)

    def observe(self, elapsed_s: float, growth_bytes: int) -> int:
        """Take the next window (seconds, bytes; negative: it shrank); return the percent from now on."""
        if elapsed_s > 0:
            self._rates.append(growth_bytes / 1e6 / (elapsed_s * 1e3))
        if len(self._rates) == _WINDOWS:
            wanted = round(percent_of(sorted(self._rates)[_WINDOWS // 2]))
            self.percent += min(max(wanted - self.percent, -_STEP), _STEP)
        return self.percent
