"""How much of one turn of an event loop goes to calls that are over before it ends.

    poll ──► call call call call call │ refused, refused, refused ──► poll
             └─ as long as it takes, up to `wait_s`; in overload, up to the target

Such calls never wait inside the service, and no count of them shows that there are too many: what is ready
waits in the kernel for its place in the turn, and what comes meanwhile waits for the next one. So how long
turns are is how long requests wait. A long one now and then is a burst, and what it left over is gone some
turns later. When a tenth of a second had no turn that was short and refused nobody, it is overload, by
the rule of CoDel (Nichols and Jacobson, 2012; RFC 8289). Then turns have a target, and past it only tenants
are served that had less than their share of the turn: each has at least one call in it.

No clock, and no thread.
"""

from __future__ import annotations

import math
from collections import defaultdict

__all__ = ["Pace"]

_TARGET_S = 0.001
"""Of a turn in overload: some ten calls. Who is refused waits for them, and for all that are refused before."""
_SHORT_S, _WINDOW_S = 0.005, 0.1
"""CoDel's target and interval."""


class Pace:
    """Decides for each call of a turn.

    Args:
        wait_s: the longest turn: a burst is worth so much.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._had: defaultdict[str, float] = defaultdict(float)
        """Calls of this turn, over their tenant's weight."""
        self._all = 0.0  # invariant: their sum
        self._refused = False  # anybody, in this turn
        self._began_s = self._ended_s = self._calm_s = -math.inf

    def begin(self, now_s: float) -> None:
        """A turn begins."""
        if now_s - self._ended_s > _SHORT_S:
            self._calm_s = now_s  # there was nothing to do
        self._began_s = now_s
        self._had.clear()
        self._all, self._refused = 0.0, False

    def end(self, now_s: float) -> None:
        """The turn is over."""
        self._ended_s = now_s
        if now_s - self._began_s <= _SHORT_S and not self._refused:
            self._calm_s = now_s

    def admits(self, tenant: str, weight: float, now_s: float) -> bool:
        """Tell whether a call may be made in this turn, and count it if so."""
        age_s = now_s - self._began_s
        burst = now_s - self._calm_s <= _WINDOW_S
        if age_s > self._wait_s or not (
            burst or age_s <= _TARGET_S or self._had[tenant] * len(self._had) < self._all
        ):
            self._refused = True
            return False
        self._had[tenant] += 1 / weight
        self._all += 1 / weight
        return True

    def age_s(self, now_s: float) -> float:
        """Return how long the turn has lasted."""
        return now_s - self._began_s
