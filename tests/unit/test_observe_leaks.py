"""What counts as growth, and who is named for it."""

from __future__ import annotations

import pytest

import sandhost
from sandhost.observe.leaks import grown
from sandhost.observe.pprof import Profile, Sample, ValueType

TYPES = tuple(
    ValueType(kind, unit)
    for kind, unit in (
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    )
)
SECOND = 10**9


def row(count: int, held: str, age_s: float = 1, kind: str = "Table", allocs: int = 0) -> Sample:
    tags = (("tenant", "acme"), ("plugin", "shop"), ("kind", kind))
    values = (allocs, allocs * 10, count, count * 10)
    return Sample(("x", kind), values, (*tags, ("held", held), ("age", int(age_s * SECOND))))


def at(second: int, *samples: Sample) -> Profile:
    return Profile(TYPES, samples, second * SECOND)


def test_growth_is_named_with_who_holds_it_and_for_how_long() -> None:
    before = at(0, row(10, "pinned > Registry"), row(5, "not released", allocs=15))
    after = at(
        60,
        row(110, "pinned > Registry", 30),
        row(10, "pinned > Registry", 64),
        row(5, "not released", allocs=200),
    )
    (growth,) = grown([before, after])
    assert (growth.tenant, growth.plugin, growth.kind) == ("acme", "shop", "Table")
    assert growth.objects == (15, 125)
    assert growth.more_bytes == 1100
    assert growth.allocs == 185
    (holder,) = growth.holders
    assert (holder.path, holder.objects, holder.bytes) == ("pinned > Registry", 110, 1100)
    assert (holder.median_age_ns, holder.oldest_age_ns) == (30 * SECOND, 64 * SECOND)


@pytest.mark.parametrize("counts", [(100, 100), (100, 90), (1000, 1040), (10, 25), (0, 15), (5, 0)])
def test_what_is_as_good_as_steady_is_not_named(counts: tuple[int, int]) -> None:
    first, last = counts
    assert grown([at(0, row(first, "a")), at(60, row(last, "a"))]) == []


def test_a_cache_that_lets_go_in_between_is_not_named() -> None:
    looks = [at(n, row(count, "a")) for n, count in enumerate((100, 180, 120, 190))]
    assert grown(looks) == []
    assert grown([looks[0], looks[-1]]) != []  # with two looks nobody can tell


def test_what_is_new_is_named() -> None:
    (growth,) = grown([at(0), at(60, row(40, "pinned"))])
    assert growth.objects == (0, 40)


def test_few_count_when_asked_for() -> None:
    looks = [at(0, row(1, "a")), at(60, row(3, "a"))]
    assert grown(looks) == []
    assert len(grown(looks, least=2)) == 1


def test_the_largest_growth_comes_first() -> None:
    after = at(9, row(40, "a", kind="Small"), row(400, "a", kind="Large"))
    assert [growth.kind for growth in grown([at(0), after])] == ["Large", "Small"]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(sandhost.ConfigError, match="two profiles or more"):
        grown([at(0)])
    with pytest.raises(sandhost.ConfigError, match="not in the order"):
        grown([at(1), at(0)])
    cpu = Profile((ValueType("cpu", "nanoseconds"),), (), 5)
    with pytest.raises(sandhost.ConfigError, match="no profile of handles: it has cpu"):
        grown([at(0), cpu])
