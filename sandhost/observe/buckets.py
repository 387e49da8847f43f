"""A latency histogram in few buckets, for those who have to store them.

A host counts in 1,184 buckets, each at most 1/32 of its value wide; they end at every power of two and
halfway between. So what is counted in these is exact: two for each doubling where calls live, from a
microsecond to a millisecond, and one for each fourfold above, up to 17 seconds.
"""

from __future__ import annotations

from ..govern.stats import Latency

__all__ = ["BOUNDS_S", "cumulative", "sum_s"]

_BOUNDS_NS = (
    *(half << shift for shift in range(9, 19) for half in (2, 3)),
    *(1 << shift for shift in range(20, 36, 2)),
)
BOUNDS_S = tuple(bound / 1e9 for bound in _BOUNDS_NS)
"""A duration below the bound counts; C cuts it to whole nanoseconds, so "at most" is the same."""


def cumulative(latency: Latency) -> list[int]:
    """Return how many took less than each bound."""
    counts, passed = [], 0
    buckets = iter((*latency.buckets, (1 << 64, 0)))
    highest, count = next(buckets)
    for bound in _BOUNDS_NS:
        while highest < bound:
            passed += count
            highest, count = next(buckets)
        counts.append(passed)
    return counts


def sum_s(latency: Latency) -> float:
    """Return the sum of all, taking each for the middle of its bucket: within 1/64, and never falling."""
    # A bucket that ends at v holds 2 ** (v.bit_length() - 6) values, from 64 on.
    return (
        sum(
            count * (value - ((1 << max(value.bit_length() - 6, 0)) - 1) / 2)
            for value, count in latency.buckets
        )
        / 1e9
    )
