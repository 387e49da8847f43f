"""How much of one turn of an event loop goes to calls that are over before it ends.

    poll ──► call call call call call │ refused, refused, refused ──► poll
             └─ as long as it takes, up to `wait_s`; for who has too much, up to the target

Such calls never wait inside the service, and no count of them shows that there are too many: what is ready
waits in the kernel for its place in the turn, and what comes meanwhile waits for the next one. So how long
turns are is how long requests wait. A long one now and then is a burst, and what it left over is gone some
turns later. A tenant that for a tenth of a second had no turn that was short and refused it nothing has too much,
by the rule of FQ-CoDel (RFC 8290), here for tenants and turns in place of flows and packets. Then turns
have a target for it, and past that it is served while it had less than its share of the turn.

No clock, and no thread.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

__all__ = ["Pace"]

_TARGET_S = 0.001
"""Of a turn: some ten calls. Who is refused waits for them, and for all that are refused before."""
_SHORT_S, _WINDOW_S = 0.005, 0.1
"""CoDel's target and interval."""


class _Trouble(NamedTuple):
    """Of a tenant's turns, one after the other, that were long or refused it something."""

    since_s: float
    last_s: float


class Pace:
    """Decides for each call of a turn.

    Args:
        wait_s: the longest turn: a burst is worth so much.
    """

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._had: defaultdict[str, float] = defaultdict(float)
        """Calls of this turn, over their tenant's weight; also of who was refused."""
        self._all = 0.0  # invariant: their sum
        self._refused: set[str] = set()
        self._troubles: dict[str, _Trouble] = {}
        self.began_s = -math.inf
        """This turn, or the last."""
        self._ended_s = -math.inf

    def begin(self, now_s: float) -> None:
        """A turn begins."""
        if now_s - self._ended_s > _SHORT_S:
            self._troubles.clear()  # there was nothing to do
        self.began_s = now_s
        self._had.clear()
        self._refused.clear()
        self._all = 0.0

    def end(self, now_s: float) -> None:
        """The turn is over."""
        self._ended_s = now_s
        long = now_s - self.began_s > _SHORT_S
        before = self._troubles
        if not long:  # nobody else has any, whether or not it asked for something
            self._troubles = {}
        for tenant in self._had if long else self._refused:
            last = before.get(tenant)
            going_on = last is not None and now_s - last.last_s <= _WINDOW_S
            since_s = last.since_s if last is not None and going_on else self.began_s
            self._troubles[tenant] = _Trouble(since_s, now_s)

    def admits(self, tenant: str, weight: float, now_s: float) -> bool:
        """Tell whether a call may be made in this turn, and count it if so."""
        age_s = now_s - self.began_s
        if age_s > _TARGET_S and (age_s > self._wait_s or self._has_too_much(tenant, now_s)):
            self._had[tenant] += 0.0
            self._refused.add(tenant)
            return False
        self._had[tenant] += 1 / weight
        self._all += 1 / weight
        return True

    def _has_too_much(self, tenant: str, now_s: float) -> bool:
        trouble = self._troubles.get(tenant)
        return (
            trouble is not None
            and now_s - trouble.since_s > _WINDOW_S
            and now_s - trouble.last_s <= _WINDOW_S
            and self._had[tenant] * len(self._had) >= self._all
        )

    def age_s(self, now_s: float) -> float:
        """Return how long the turn has lasted."""
        return now_s - self.began_s
