"""Profiles as text: what `?debug=1` shows, and people read without a tool."""

from __future__ import annotations

import datetime as dt

from ..units import format_bytes, format_ns
from .pprof import Profile, Sample

__all__ = ["as_text"]

_MOST = 500
"""Stacks shown, the largest."""


def as_text(profile: Profile) -> str:
    """Return the samples of a profile, by the value that is shown first, the largest first."""
    kinds = [value.kind for value in profile.types]
    at = kinds.index(profile.shown) if profile.shown in kinds else 0
    samples = sorted((s for s in profile.samples if s.values[at]), key=lambda s: -abs(s.values[at]))
    when = dt.datetime.fromtimestamp(profile.time_ns / 1e9, dt.timezone.utc)
    lines = [
        *profile.comments,
        f"time: {when.isoformat(timespec='milliseconds')}",
        *([f"within: {format_ns(profile.duration_ns)}"] if profile.duration_ns else []),
        *(f"total {kind}: {_total(profile, k)}" for k, kind in enumerate(kinds)),
        "",
    ]
    for sample in samples[:_MOST]:
        lines += [_head(profile, sample), *(f"    {name}" for name in reversed(sample.stack)), ""]
    if len(samples) > _MOST:
        lines.append(f"and {len(samples) - _MOST} more")
    return "\n".join(lines)


def _total(profile: Profile, k: int) -> str:
    return _value(sum(sample.values[k] for sample in profile.samples), profile.types[k].unit)


def _value(number: int, unit: str) -> str:
    return format_bytes(number) if unit == "bytes" else f"{number:,}"


def _head(profile: Profile, sample: Sample) -> str:
    values = [
        f"{_value(number, kind.unit)} {kind.kind}"
        for number, kind in zip(sample.values, profile.types)
        if number
    ]
    tags = [
        f"{key}={value}" if isinstance(value, str) else f"{key}>={format_ns(value)}"
        for key, value in sample.tags
        if key not in ("kind", "held")
    ]
    return f"{', '.join(values)}   # {' '.join(tags)}"
