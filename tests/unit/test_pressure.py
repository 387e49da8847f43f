"""Memory pressure, simulated: a host made of numbers, a clock that is moved by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhost.errors import ConfigError
from sandhost.govern.actions import CallBack
from sandhost.govern.ladder import Ladder, Level, Opinion, Thresholds
from sandhost.govern.pressure import Pressure
from sandhost.govern.protocol import Ended, Released
from sandhost.govern.scavenger import Scavenger
from sandhost.govern.shares import Holding, furthest_over, shares
from sandhost.govern.signals import (
    GroupHits,
    LiveHandles,
    Reading,
    Signal,
    Stall,
    TimeToLimit,
    Usage,
)

GIB = 2**30


def says(level: int, holds: int | None = None) -> list[Opinion]:
    return [Opinion("test", Level(level), Level(level if holds is None else holds), "")]


# ---- the ladder ----


def test_the_level_goes_up_at_once_and_down_one_at_a_time() -> None:
    ladder = Ladder(dwell_s=1.0)
    assert ladder.update(0.0, says(0)) == Level.CALM
    assert ladder.update(0.1, says(4)) == Level.END
    levels = [ladder.update(0.1 + step / 10, says(0)) for step in range(1, 45)]
    assert [level.value for level in levels[8::10]] == [4, 3, 2, 1]
    assert levels[-1] == Level.CALM
    assert all(a - b in (0, 1) for a, b in pairwise(levels))


def test_a_value_that_trembles_at_a_threshold_moves_nothing() -> None:
    usage, ladder = Usage(Thresholds(), gap=0.05), Ladder(dwell_s=0.2)
    for step in range(1000):
        part = 0.85 + (0.02 if step % 2 else -0.04)  # below the threshold, not below the gap
        opinion = usage.look(Reading(step / 100, GIB, int(part * GIB)))
        level = ladder.update(step / 100, [opinion])
        assert level == (Level.REFUSE if step else Level.EVICT)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.001, 0.5)), max_size=60)
)
def test_no_history_makes_the_ladder_late_or_hasty(steps: list[tuple[int, int, float]]) -> None:
    ladder, now_s, quiet_since_s = Ladder(dwell_s=0.3), 0.0, 0.0
    for asks, more, pause_s in steps:
        now_s += pause_s
        before = ladder.level
        holds = max(asks, more)
        after = ladder.update(now_s, says(asks, holds))
        assert after >= asks
        if after < before:
            assert after == before - 1
            assert now_s - quiet_since_s >= 0.3
        if holds >= before or after != before:
            quiet_since_s = now_s


@pytest.mark.parametrize(
    "wrong", [(0.9, 0.8, 0.95, 0.97), (0, 0.5, 0.6, 0.7), (0.5, 0.6, 0.7, 1.2)]
)
def test_thresholds_that_do_not_ascend_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="ascending"):
        Usage(Thresholds(*wrong))


# ---- signals ----


@pytest.mark.parametrize(
    ("part", "level"), [(0.74, 0), (0.75, 1), (0.84, 1), (0.85, 2), (0.95, 3), (0.97, 4), (1.2, 4)]
)
def test_usage_is_the_fuller_of_process_and_cgroup(part: float, level: int) -> None:
    used = int(part * GIB) + 1
    usage = Usage(Thresholds())
    assert usage.look(Reading(0, GIB, used)).asks == level
    assert usage.look(Reading(0, None, used, GIB, used)).asks == level
    assert usage.look(Reading(0, 4 * GIB, used, GIB, used)).asks == level
    assert usage.look(Reading(0, None, used)).asks == Level.CALM


def test_a_burst_is_seen_before_the_limit_is() -> None:
    signal = TimeToLimit(horizon_s=1.0)
    asked = []
    for step in range(60):
        part = min(1.0, 0.01 * step)  # a hundredth in 10 ms: all of it within a second
        asked.append((part, signal.look(Reading(step / 100, GIB, int(part * GIB))).asks))
    assert all(level == Level.CALM for part, level in asked if part < 0.5)
    assert all(level >= Level.EVICT for part, level in asked if part > 0.5)
    assert signal.look(Reading(2.0, GIB, GIB // 2)).asks == Level.CALM  # it no longer grows


def test_stalls_count_over_a_window_and_never_end_guests() -> None:
    signal, stalled, seen = Stall(window_s=1.0), 0.0, []
    for step in range(400):
        stalled += 0.01 * (0.5 if 100 <= step < 200 else 0.0)
        seen.append(signal.look(Reading(step / 100, None, None, stall_s=stalled)).asks)
    assert set(seen[:100]) == {Level.CALM}
    assert max(seen) == seen[199] == Level.REFUSE
    assert set(seen[310:]) == {Level.CALM}
    assert signal.look(Reading(9, None, None)).why == "the kernel does not say"


def test_a_cgroup_that_met_its_limit_asks_for_release_while_that_is_new() -> None:
    signal = GroupHits(window_s=1.0)
    levels = []
    for step in range(40):
        hits = 7 + (step >= 10)
        levels.append(signal.look(Reading(step / 10, None, None, group_hits=hits)).asks)
    assert levels[9] == Level.CALM and levels[10] == Level.RELEASE and levels[30] == Level.CALM


def test_live_handles_ask_for_no_more_than_to_refuse() -> None:
    signal = LiveHandles(Thresholds())
    reading = Reading(0, None, None, handle_limit_bytes=100, handle_live_bytes=99)
    assert signal.look(reading).asks == Level.REFUSE
    assert signal.look(reading._replace(handle_live_bytes=10)).asks == Level.CALM
    assert signal.look(Reading(0, None, None)).asks == Level.CALM


# ---- shares ----


def test_who_wants_less_leaves_the_rest_to_the_others() -> None:
    holdings = [Holding("a", 1, 10), Holding("b", 1, 500), Holding("c", 1, 500)]
    assert shares(holdings, 610) == [203, 300, 300]
    assert furthest_over(holdings, 610) == (holdings[1], 300)
    assert furthest_over(holdings, 2000) is None
    assert furthest_over([], 100) is None


def test_weights_part_the_memory() -> None:
    holdings = [Holding("a", 3, 1000), Holding(None, 1, 1000)]
    assert shares(holdings, 400) == [300, 100]
    assert furthest_over(holdings, 400) == (holdings[1], 100)


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 10**12)), min_size=1, max_size=30),
    st.integers(0, 10**13),
)
def test_shares_hold_together_what_there_is(pairs: list[tuple[float, int]], total: int) -> None:
    holdings = [Holding(str(at), weight, held) for at, (weight, held) in enumerate(pairs)]
    given_ = shares(holdings, total)
    kept = sum(
        min(holding.held_bytes, share) for holding, share in zip(holdings, given_, strict=True)
    )
    held = sum(holding.held_bytes for holding in holdings)
    assert kept <= total
    assert kept >= min(held, total) - len(holdings) * (1 + total // 10**12)
    # Nobody is cut who has less for its weight than another who is not.
    cut = [
        h.held_bytes / h.weight
        for h, s in zip(holdings, given_, strict=True)
        if h.held_bytes > s + 1
    ]
    kept_whole = [
        s / h.weight for h, s in zip(holdings, given_, strict=True) if h.held_bytes > s + 1
    ]
    assert len(cut) == len(kept_whole)
    if kept_whole:
        assert max(kept_whole) - min(kept_whole) <= 1e-6 * max(kept_whole) + 200


# ---- the controller on a simulated host ----


class SimulatedHost:
    """Memory as numbers: what guests hold, what is warm, and who is refused."""

    def __init__(self, limit: int = 1000) -> None:
        self.now_s, self.limit = 0.0, limit
        self.base, self.warm, self.garbage = 50, 0, 0
        self.guests: dict[int, tuple[str, int]] = {}
        self.refused, self.everybody = 0.0, False
        self.collections = 0

    @property
    def resident(self) -> int:
        return self.base + self.warm + self.garbage + sum(size for _, size in self.guests.values())

    def read(self, now_s: float, limit_bytes: int | None) -> Reading:
        return Reading(now_s, limit_bytes, self.resident)

    def evict(self) -> int:
        self.collections += 1
        freed, self.warm = self.warm, 0
        self.garbage = 0
        return freed

    def refuse(self, retry_s: float, limit_bytes: int, *, everybody: bool) -> int:
        self.refused, self.everybody = retry_s, everybody
        return 0

    def release(self) -> Released:
        return Released(self.evict(), 0, 0)

    def scavenge(self) -> int:
        return 0

    def end_one(self, limit_bytes: int) -> Ended | None:
        held: dict[str, int] = {}
        for tenant, size in self.guests.values():
            held[tenant] = held.get(tenant, 0) + size
        holdings = [Holding(tenant, 1, size) for tenant, size in held.items()]
        most = furthest_over(holdings, int(0.75 * min(sum(held.values()), limit_bytes)))
        if most is None:
            return None
        mine = [number for number, (tenant, _) in self.guests.items() if tenant == most[0].tenant]
        number = max(mine, key=lambda each: self.guests[each][1])
        size = self.guests.pop(number)[1]
        return Ended(number, "p", most[0].tenant, size, most[0].held_bytes, most[1], closed=True)

    def pressure(self, **kwargs: object) -> Pressure:
        return Pressure(self, self.limit, clock=lambda: self.now_s, thread=None, **kwargs)  # type: ignore[arg-type]


def test_what_is_warm_goes_first_and_nobody_is_refused() -> None:
    host = SimulatedHost()
    pressure = host.pressure()
    host.guests[1], host.warm = ("a", 500), 230
    assert pressure.turn() <= 0.01
    assert (pressure.level, host.warm, host.collections) == (Level.EVICT, 0, 1)
    assert host.refused == 0.0
    for _ in range(100):
        host.now_s += pressure.turn()
    assert pressure.level == Level.CALM
    assert pressure.ended == pressure.ended.__class__(maxlen=100)
    assert [one.after for one in pressure.history] == [Level.EVICT, Level.CALM]
    assert "the process uses 78.0%" in pressure.history[0].why


def test_a_growing_tenant_is_ended_and_the_others_never_are() -> None:
    host = SimulatedHost()
    pressure = host.pressure()
    for number in range(20):
        host.guests[number] = ("good", 5)
    worst = 0
    for step in range(2000):
        host.now_s += 0.01
        number = 1000 + step % 50
        size = host.guests.get(number, ("bad", 0))[1]
        host.guests[number] = ("bad", size + 5)  # those that live grow on, refused or not
        worst = max(worst, host.resident)
        pressure.turn()
    assert worst <= 1000
    assert len(pressure.ended) > 0
    assert {ended.tenant for ended in pressure.ended} == {"bad"}
    assert all(ended.tenant_bytes > ended.share_bytes for ended in pressure.ended)
    assert "are its share" in str(pressure.ended[0])
    assert sum(tenant == "good" for tenant, _ in host.guests.values()) == 20


def test_pressure_falls_within_a_second_of_the_loads_end() -> None:
    host = SimulatedHost()
    pressure = host.pressure()
    host.guests[1], host.garbage = ("a", 100), 890
    pressure.turn()
    assert pressure.level == Level.END
    host.guests.clear()
    ended_s = host.now_s
    while pressure.level:
        host.now_s += pressure.turn()
    assert host.now_s - ended_s < 1.0
    assert host.refused == 0.0 and not host.everybody


def test_retry_hints_grow_with_the_level() -> None:
    host = SimulatedHost()
    pressure = host.pressure()
    hints = []
    for used in (860, 955):
        host.base = used
        host.now_s += 0.1
        pressure.turn()
        hints.append((host.refused, host.everybody))
    assert hints == [(0.25, False), (0.5, True)]


def test_a_limit_can_be_changed_while_it_holds() -> None:
    host = SimulatedHost()
    pressure = host.pressure()
    host.base = 900
    pressure.turn()
    assert pressure.level == Level.REFUSE
    pressure.limit_bytes = 10_000
    while pressure.level:
        host.now_s += pressure.turn()
    assert host.now_s < 1.0


def test_signals_and_actions_of_the_applications_own() -> None:
    host, seen, over = SimulatedHost(), [], []

    class Queue(Signal):
        name = "queue"
        length = 0

        def look(self, reading: Reading) -> Opinion:
            level = Level.EVICT if self.length > 10 else Level.CALM
            return Opinion(self.name, level, level, f"{self.length} requests wait")

    pressure, queue = host.pressure(), Queue()
    pressure.signals.append(queue)
    pressure.actions.append(
        CallBack("drop cache", Level.EVICT, seen.append, lambda: over.append(1))
    )
    pressure.turn()
    assert (pressure.level, seen) == (Level.CALM, [])
    queue.length = 11
    host.now_s += 0.1
    pressure.turn()
    assert (pressure.level, seen) == (Level.EVICT, [Level.EVICT])
    assert any(opinion.why == "11 requests wait" for opinion in pressure.explain())
    queue.length = 0
    while pressure.level:
        host.now_s += pressure.turn()
    assert over == [1]
    assert pressure.stats().actions["drop cache"] >= 1


def test_a_signal_or_action_that_fails_is_counted_and_stops_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = SimulatedHost()
    pressure = host.pressure()

    class Broken(Signal):
        name = "broken"

        def look(self, reading: Reading) -> Opinion:
            raise RuntimeError("no")

    def fail(_level: Level) -> None:
        raise ValueError("no")

    pressure.signals.insert(0, Broken())
    pressure.actions.insert(0, CallBack("bad", Level.EVICT, fail, lambda: 1 / 0))
    host.base = 990
    pressure.turn()
    assert pressure.level == Level.END
    assert host.everybody
    host.base = 50
    while pressure.level:
        host.now_s += pressure.turn()
    assert pressure.stats().failures >= 3


def test_closing_takes_back_what_is_being_done() -> None:
    host = SimulatedHost()
    pressure = host.pressure()
    host.base = 990
    pressure.turn()
    assert host.everybody
    pressure.close()
    pressure.close()
    assert not host.everybody and host.refused == 0.0
    assert pressure.closed


def test_time_at_each_level_adds_up() -> None:
    host = SimulatedHost()
    pressure = host.pressure()
    del pressure.signals[1:]
    for step in range(300):
        host.base = 800 if 100 <= step < 200 else 100
        host.now_s += 0.01
        pressure.turn()
    seconds = pressure.stats().seconds_at
    assert sum(seconds.values()) == pytest.approx(3.0)
    assert seconds["evict"] == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError):
        Pressure(SimulatedHost(), limit, thread=None)


# ---- the scavenger ----


def test_the_scavenger_rests_a_hundred_times_as_long_as_it_works() -> None:
    cpu_s, now_s = 0.0, 0.0

    def work() -> int:
        nonlocal cpu_s, now_s
        cpu_s += 0.05
        now_s += 0.05
        return 7

    scavenger = Scavenger(work, lambda: cpu_s)
    while now_s < 1000:
        now_s += scavenger.turn(now_s)
    assert cpu_s / now_s <= 0.0101
    assert scavenger.used_s == pytest.approx(cpu_s)
    assert scavenger.given_back_bytes == 7 * round(cpu_s / 0.05)


def test_the_scavenger_comes_no_more_often_than_its_period() -> None:
    times = []
    scavenger = Scavenger(lambda: times.append(1) or 0, lambda: 0.0, period_s=2.0)
    now_s = 0.0
    while now_s < 20:
        now_s += min(0.1, scavenger.turn(now_s))
    assert 8 <= len(times) <= 10
