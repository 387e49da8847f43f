"""Latencies of one kind of operation in an HDR histogram, and what is read off it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from array import array

__all__ = ["PERCENTILES", "Histogram", "Summary", "percentile_name"]

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99)
_LONGEST_NS = 3_600_000_000_000
_DIGITS = 3
_SAMPLES_BEYOND = 10
"""A percentile is told only if at least so many samples lie beyond it. Arbitrary, and usual."""

_MEDIAN = 50.0

Summary = dict[str, float | int | None]
"""Nanoseconds by name: p50 … p99.99 (None: too few samples to tell), max; and samples."""


def percentile_name(percent: float) -> str:
    """Return "p99.9" for 99.9."""
    return f"p{percent:g}"


class Histogram:
    """An HDR histogram of nanoseconds, three significant digits, 1 ns to one hour."""

    def __init__(self) -> None:
        try:
            from hdrh.histogram import HdrHistogram
        except ImportError:
            raise ConfigError(
                "the bench needs hdrhistogram: pip install 'sandhost[bench]'"
            ) from None
        self._native: Any = HdrHistogram(1, _LONGEST_NS, _DIGITS)
        self._summary: Summary | None = None

    def record(self, samples: array[int] | Iterable[int]) -> None:
        """Add samples, in nanoseconds."""
        self._summary = None
        add = self._native.record_value
        for value, count in Counter(samples).items():
            add(min(max(value, 1), _LONGEST_NS), count)

    @property
    def count(self) -> int:
        """Samples recorded."""
        return int(self._native.get_total_count())

    def summary(self) -> Summary:
        """Return percentiles, maximum and number of samples."""
        if self._summary is None:
            self._summary = self._summarize()
        return self._summary

    def _summarize(self) -> Summary:
        count = self.count
        wanted = {p: max(1, math.ceil(count * p / 100)) for p in PERCENTILES}
        found: dict[float, int] = {}
        for passed, value in self._steps():
            for percent, target in wanted.items():
                if passed >= target and percent not in found:
                    found[percent] = value
        out: Summary = {}
        for percent in PERCENTILES:
            told = round(count * (100 - percent) / 100, 6) >= _SAMPLES_BEYOND or percent == _MEDIAN
            out[percentile_name(percent)] = found.get(percent) if told else None
        out["max"] = int(self._native.max_value) if count else None
        out["samples"] = count
        return out

    def _steps(self) -> Iterator[tuple[int, int]]:
        """Yield (samples up to here, nanoseconds) for each bucket that is not empty."""
        native, passed, most = self._native, 0, self._native.max_value
        for index, count in enumerate(list(native.counts)):
            if count:
                passed += count
                value = native.get_value_from_index(index)
                yield passed, min(native.get_highest_equivalent_value(value), most)

    def curve(self) -> list[tuple[float, int]]:
        """Return (percentile, nanoseconds) points, for a picture."""
        count = self.count
        return [(100 * passed / count, value) for passed, value in self._steps()]

    def encoded(self) -> str:
        """Return the histogram in HdrHistogram's own compressed form (V2, base64)."""
        data = self._native.encode()
        return data.decode() if isinstance(data, bytes) else str(data)
