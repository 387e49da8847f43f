"""Profiles as speedscope shows them (speedscope.app), in its own JSON format."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ConfigError
from .pprof import Profile

__all__ = ["speedscope"]

_UNITS = {"bytes": "bytes", "nanoseconds": "nanoseconds"}
"""Of pprof's names of units, those that speedscope has as well; it has none for counts."""


def speedscope(profile: Profile, *kinds: str) -> bytes:
    """Return a profile as a file of speedscope's.

    Args:
        kinds: which values to show, each as a profile of its own; none: all of them.

    Raises:
        ConfigError: the profile has no such values.
    """
    known = [value.kind for value in profile.types]
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"the profile has {', '.join(known)}, not {kind!r}")
    frames: dict[str, int] = {}
    profiles: list[dict[str, Any]] = []
    for at, (kind, unit) in enumerate(profile.types):
        if kinds and kind not in kinds:
            continue
        samples, weights = [], []
        for sample in profile.samples:
            if sample.values[at] > 0:  # of a difference, what shrank has no width
                samples.append([frames.setdefault(name, len(frames)) for name in sample.stack])
                weights.append(sample.values[at])
        profiles.append(
            {
                "type": "sampled",
                "name": kind,
                "unit": _UNITS.get(unit, "none"),
                "startValue": 0,
                "endValue": sum(weights),
                "samples": samples,
                "weights": weights,
            }
        )
    record = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "shared": {"frames": [{"name": name} for name in frames]},
        "profiles": profiles,
        "name": profile.comments[0] if profile.comments else "sandhost",
        "activeProfileIndex": 0,
        "exporter": "sandhost",
    }
    return json.dumps(record, separators=(",", ":")).encode()
