"""What grew between profiles of one host, and who holds it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from ..errors import ConfigError
from .pprof import Profile, Sample

__all__ = ["Growth", "Holder", "grown"]

_LEAST_SHARE = 0.05
"""Of what there was: what grew by less is as good as steady. Arbitrary, as `least`."""

_Key = tuple[str, str, str, str]


class Holder(NamedTuple):
    """What leads to handles that grew in number."""

    path: str
    """From a root to what holds them, "pinned > Registry > list"."""
    objects: int
    """That are held so, more than before."""
    bytes: int
    median_age_ns: int
    """Of all that are held so now; within a factor of 2."""
    oldest_age_ns: int


class Growth(NamedTuple):
    """Handles of one tenant, plugin, kind and label that became more."""

    tenant: str
    """"": none."""
    plugin: str
    """"": the application's own."""
    kind: str
    label: str
    objects: tuple[int, ...]
    """In use, at each profile."""
    bytes: tuple[int, ...]
    allocs: int
    """Given out from the first profile to the last."""
    holders: tuple[Holder, ...]
    """Those that hold more than before, the one with most of it first."""

    @property
    def more_objects(self) -> int:
        """How many more there are."""
        return self.objects[-1] - self.objects[0]

    @property
    def more_bytes(self) -> int:
        """How much more they take."""
        return self.bytes[-1] - self.bytes[0]


class _Columns(NamedTuple):
    allocs: int
    objects: int
    space: int


def _columns(profile: Profile) -> _Columns:
    kinds = [value.kind for value in profile.types]
    try:
        return _Columns(*map(kinds.index, ("alloc_objects", "inuse_objects", "inuse_space")))
    except ValueError:
        raise ConfigError(
            f"this is no profile of handles: it has {', '.join(kinds) or 'nothing'}; "
            "take Capture.write's, or /debug/pprof/heap"
        ) from None


def _key_of(sample: Sample) -> _Key:
    tags = dict(sample.tags)
    tenant, plugin, kind, label = (
        str(tags.get(name, "")) for name in ("tenant", "plugin", "kind", "label")
    )
    return tenant, plugin, kind, label


def _sums(profile: Profile) -> dict[_Key, tuple[int, int, int]]:
    """Return allocations, objects and bytes in use, by what they are."""
    at = _columns(profile)
    sums: dict[_Key, tuple[int, int, int]] = {}
    for sample in profile.samples:
        allocs, objects, space = sums.get(key := _key_of(sample), (0, 0, 0))
        values = sample.values
        sums[key] = (
            allocs + values[at.allocs],
            objects + values[at.objects],
            space + values[at.space],
        )
    return sums


def grown(profiles: Sequence[Profile], *, least: int = 16) -> list[Growth]:
    """Return what became more from each profile to the next, what grew most in bytes first.

    A cache that is full changes what it holds, but not how much, and is not named; one that is still being filled is.
    The more profiles in between, the less is mistaken for a leak.

    Args:
        profiles: of one host, in the order in which they were taken; two or more.
        least: objects that must be there more. Less than 5 % more is never named.

    Raises:
        ConfigError: these are no profiles of handles, or there is only one.
    """
    if len(profiles) < 2:
        raise ConfigError("growth needs two profiles or more")
    if any(later.time_ns < earlier.time_ns for earlier, later in pairwise(profiles)):
        raise ConfigError("the profiles are not in the order in which they were taken")
    sums = [_sums(profile) for profile in profiles]
    found = []
    for key in sums[-1]:
        allocs, objects, space = zip(*(each.get(key, (0, 0, 0)) for each in sums))
        steady = any(later < earlier for earlier, later in pairwise(objects))
        if steady or objects[-1] - objects[0] < max(least, _LEAST_SHARE * objects[0], 1):
            continue
        holders = _holders(profiles[0], profiles[-1], key)
        found.append(Growth(*key, objects, space, allocs[-1] - allocs[0], holders))
    return sorted(found, key=lambda growth: (-growth.more_bytes, -growth.more_objects))


def _held(profile: Profile, key: _Key) -> dict[str, list[tuple[int, int, int]]]:
    """Return objects, bytes and ages, by what leads to them."""
    at = _columns(profile)
    held: dict[str, list[tuple[int, int, int]]] = {}
    for sample in profile.samples:
        if sample.values[at.objects] and _key_of(sample) == key:
            tags = dict(sample.tags)
            age = tags.get("age", 0)
            held.setdefault(str(tags.get("held", "")), []).append(
                (
                    sample.values[at.objects],
                    sample.values[at.space],
                    age if isinstance(age, int) else 0,
                )
            )
    return held


def _holders(first: Profile, last: Profile, key: _Key) -> tuple[Holder, ...]:
    before, after = _held(first, key), _held(last, key)
    found = []
    for path, rows in after.items():
        objects, space = (
            sum(row[k] for row in rows) - sum(row[k] for row in before.get(path, []))
            for k in range(2)
        )
        if objects > 0:
            ages = sorted((age, count) for count, _, age in rows)
            found.append(Holder(path, objects, space, _median(ages), ages[-1][0]))
    return tuple(sorted(found, key=lambda holder: -holder.objects))


def _median(ages: list[tuple[int, int]]) -> int:
    half, passed = sum(count for _, count in ages) / 2, 0
    for age, count in ages:
        passed += count
        if passed >= half:
            return age
    return 0
