"""Who has more than its share of the memory: weighted max-min fairness.

Who wants less than its part leaves the rest to the others, so a tenant alone may have everything; when
all want more, each has its weight's part. (Bertsekas & Gallager, Data Networks, section 6.5.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Holding", "furthest_over", "shares"]


class Holding(NamedTuple):
    """What one tenant holds."""

    tenant: str | None
    """None: all guests that belong to none, together."""
    weight: float
    held_bytes: int


def shares(holdings: Sequence[Holding], total_bytes: int) -> list[int]:
    """Return each one's share of `total_bytes`, in the same order.

    One that holds less than that may grow up to it; the shares of those that hold more add up, with
    what the others hold, to no more than the total.
    """
    given = [0] * len(holdings)
    left_bytes, left_weight = total_bytes, sum(holding.weight for holding in holdings)
    order = sorted(
        range(len(holdings)), key=lambda at: holdings[at].held_bytes / holdings[at].weight
    )
    for at in order:
        holding = holdings[at]
        # Rounding must not give away more than is left: of the last one, weight and sum may differ.
        given[at] = min(left_bytes, int(left_bytes * (holding.weight / left_weight)))
        left_bytes -= min(holding.held_bytes, given[at])
        left_weight -= holding.weight
    return given


def furthest_over(holdings: Sequence[Holding], total_bytes: int) -> tuple[Holding, int] | None:
    """Return who is above its share by most bytes, and the share; None: nobody is."""
    over = [
        (holding.held_bytes - share, holding, share)
        for holding, share in zip(holdings, shares(holdings, total_bytes))
    ]
    most = max(over, key=lambda one: one[0], default=None)
    return None if most is None or most[0] <= 0 else (most[1], most[2])
