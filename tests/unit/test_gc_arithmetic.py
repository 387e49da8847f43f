"""Goal, trigger, workers, assists, limiter and adaptive percent, by numbers worked out by hand."""

from __future__ import annotations

import pytest

import sandhost
from sandhost.gc import effort, goals
from sandhost.gc.adaptive import AdaptivePercent, percent_of
from sandhost.gc.limiter import CpuLimiter
from sandhost.gc.pacer import Pacer
from sandhost.limits import UNLIMITED

MIB = 1 << 20


def cycle(pacer: Pacer, live: int, marked: int, *, work: int | None = None, **end: float) -> None:
    """Run one cycle that starts at the trigger."""
    pacer.start_cycle(pacer.trigger_bytes)
    pacer.revise(live, marked if work is None else work)
    pacer.end_cycle(marked, **end)


def test_the_goal_is_what_is_live_and_the_percent_of_that_and_of_roots() -> None:
    assert goals.percent_goal(100 * MIB, 0, 100, 4 * MIB) == 200 * MIB
    assert goals.percent_goal(100 * MIB, 20 * MIB, 50, 4 * MIB) == 160 * MIB
    assert goals.percent_goal(100 * MIB, 0, None, 4 * MIB) == UNLIMITED


def test_the_minimum_heap_scales_with_the_percent() -> None:
    assert goals.percent_goal(0, 0, 100, 4 * MIB) == 4 * MIB
    assert goals.percent_goal(0, 0, 400, 4 * MIB) == 16 * MIB
    assert goals.percent_goal(0, 0, 0, 4 * MIB) == 0  # collects without end


def test_the_limit_leaves_three_percent_and_at_least_a_mebibyte() -> None:
    assert goals.limit_goal(1000 * MIB, 0, 0, 0) == 1000 * MIB - 1000 * MIB // 100 * 3
    assert goals.limit_goal(10 * MIB, 0, 0, 0) == 9 * MIB
    assert goals.limit_goal(1000 * MIB, 0, 100 * MIB, 0) == 900 * MIB - 900 * MIB // 100 * 3
    assert goals.limit_goal(None, 0, 0, 0) == UNLIMITED


def test_what_exceeds_the_limit_is_taken_off_once_more() -> None:
    assert goals.limit_goal(100 * MIB, 0, 0, 10 * MIB) == goals.limit_goal(90 * MIB, 0, 0, 0)


def test_no_goal_is_below_what_is_live() -> None:
    assert goals.limit_goal(100 * MIB, 99 * MIB, 0, 0) == 99 * MIB
    assert goals.limit_goal(100 * MIB, 70 * MIB, 120 * MIB, 20 * MIB) == 70 * MIB


def test_the_trigger_stays_within_its_window() -> None:
    def trigger(runway: float, goal: int = 164 * MIB) -> int:
        return goals.plan(
            percent_goal_bytes=goal,
            limit_goal_bytes=UNLIMITED,
            marked_bytes=100 * MIB,
            runway_bytes=runway,
            smallest_window_bytes=4 * MIB,
        ).trigger_bytes

    assert trigger(0) == 161 * MIB  # 61/64 of the way is 161, the goal less 4 MiB is 160
    assert trigger(10 * MIB) == 154 * MIB
    assert trigger(1000 * MIB) == 145 * MIB  # 45/64 of the way
    assert trigger(0, goal=1060 * MIB) == 1056 * MIB


def test_a_running_sweep_and_a_running_cycle_move_the_goal_but_never_past_the_limit() -> None:
    numbers = {
        "percent_goal_bytes": 10 * MIB,
        "marked_bytes": 5 * MIB,
        "runway_bytes": 0,
        "smallest_window_bytes": 4 * MIB,
    }
    swept = goals.plan(limit_goal_bytes=UNLIMITED, unswept_from_bytes=12 * MIB, **numbers)
    assert (swept.goal_bytes, swept.trigger_bytes) == (13 * MIB, 13 * MIB)
    late = goals.plan(limit_goal_bytes=UNLIMITED, triggered_bytes=20 * MIB, **numbers)
    assert late.goal_bytes == 20 * MIB + (64 << 10)
    limited = goals.plan(
        limit_goal_bytes=9 * MIB,
        unswept_from_bytes=12 * MIB,
        triggered_bytes=20 * MIB,
        **numbers,
    )
    assert limited.goal_bytes == 9 * MIB
    assert limited.limited


@pytest.mark.parametrize(
    ("cores", "dedicated", "fractional", "idle"),
    [
        (1, 0, 0.25, 1),
        (2, 0, 0.25, 2),
        (3, 0, 0.25, 3),
        (4, 1, 0, 3),
        (5, 1, 0, 4),
        (6, 1, 0.5 / 6, 5),
        (7, 2, 0, 5),
        (8, 2, 0, 6),
        (64, 16, 0, 48),
    ],
)
def test_a_quarter_of_the_cores_mark(
    cores: int, dedicated: int, fractional: float, idle: int
) -> None:
    assert effort.workers(cores) == pytest.approx((dedicated, fractional, idle))
    background = dedicated + fractional * cores
    assert background == pytest.approx(cores / 4, rel=0.3)


def test_a_periodic_cycle_leaves_idle_cores_idle() -> None:
    assert effort.workers(8, periodic=True).idle == 0
    assert effort.workers(2, periodic=True).idle == 1  # or nobody might mark


RATIO = {
    "triggered_bytes": 80 * MIB,
    "percent": 100,
    "worst_bytes": 100 * MIB,
    "ceiling_bytes": UNLIMITED,
}


def test_assists_spread_the_work_over_the_way_to_the_goal() -> None:
    ratio = effort.assist_ratio(
        goal_bytes=100 * MIB,
        live_bytes=90 * MIB,
        work_bytes=10 * MIB,
        expected_bytes=50 * MIB,
        **RATIO,
    )
    assert ratio == 4.0


def test_more_work_than_expected_moves_the_goal_out_at_the_same_pace() -> None:
    ratio = effort.assist_ratio(
        goal_bytes=100 * MIB,
        live_bytes=100 * MIB,
        work_bytes=60 * MIB,
        expected_bytes=50 * MIB,
        **RATIO,
    )
    assert ratio == (100 - 60) / (120 - 100)  # 80 + 20 * 100/50 = 120
    steep = effort.assist_ratio(
        goal_bytes=100 * MIB,
        live_bytes=100 * MIB,
        work_bytes=2 * MIB,
        expected_bytes=1 * MIB,
        **RATIO,
    )
    assert steep == 98 / 100  # but no further than twice the goal at percent 100


def test_the_memory_limit_bounds_how_far_a_goal_is_pushed() -> None:
    numbers = {**RATIO, "ceiling_bytes": 102 * MIB, "expected_bytes": 50 * MIB}
    growing = effort.assist_ratio(
        goal_bytes=100 * MIB, live_bytes=100 * MIB, work_bytes=60 * MIB, **numbers
    )
    assert growing == (100 - 60) / 2
    late = effort.assist_ratio(
        goal_bytes=100 * MIB, live_bytes=101 * MIB, work_bytes=40 * MIB, **numbers
    )
    assert late == 60


def test_past_the_goal_a_tenth_is_left_for_everything() -> None:
    ratio = effort.assist_ratio(
        goal_bytes=100 * MIB,
        live_bytes=105 * MIB,
        work_bytes=40 * MIB,
        expected_bytes=50 * MIB,
        **RATIO,
    )
    assert ratio == pytest.approx(60 / 5, rel=1e-6)


def test_cons_mark_compares_speeds_of_the_same_core_time() -> None:
    # 30 MiB in three quarters of the time, 20 MiB in one quarter.
    assert effort.cons_mark(30 * MIB, 20 * MIB, 0.25) == pytest.approx(0.5)
    assert effort.cons_mark(30 * MIB, 20 * MIB, 0.25, 0.25) == pytest.approx(1.0)
    assert effort.runway(0.5, 20 * MIB) == 30 * MIB
    assert effort.cons_mark(MIB, MIB, 1.0) < 1e4  # nothing but assists: large, not endless


def test_the_largest_of_five_speeds_counts() -> None:
    pacer = Pacer(cores=4, minimum_heap_bytes=0)
    pacer.start_cycle(0)
    pacer.revise(50 * MIB, 50 * MIB)
    pacer.end_cycle(50 * MIB)
    fast = pacer.cons_mark
    for _ in range(4):
        cycle(pacer, pacer.trigger_bytes + MIB, 50 * MIB)
        assert pacer.cons_mark == fast
    cycle(pacer, pacer.trigger_bytes + MIB, 50 * MIB)
    assert pacer.cons_mark < fast / 5


def test_a_cycle_without_work_or_allocation_teaches_nothing() -> None:
    pacer = Pacer(cores=4)
    cycle(pacer, 6 * MIB, 3 * MIB)
    before = pacer.cons_mark
    cycle(pacer, pacer.trigger_bytes, 3 * MIB)
    cycle(pacer, 9 * MIB, 3 * MIB, work=0)
    assert pacer.cons_mark == before > 0


def test_settings_take_effect_at_once_in_a_running_cycle_too() -> None:
    pacer = Pacer(cores=4)
    cycle(pacer, 50 * MIB, 40 * MIB)
    assert pacer.goal_bytes == 80 * MIB
    pacer.percent = 50
    assert pacer.goal_bytes == 60 * MIB
    pacer.start_cycle(58 * MIB)
    slow = pacer.assist_ratio
    pacer.memory_limit_bytes = 60 * MIB
    assert pacer.limited
    assert pacer.goal_bytes < 60 * MIB
    assert pacer.assist_ratio > slow
    pacer.percent = None
    pacer.memory_limit_bytes = None
    assert pacer.goal_bytes == UNLIMITED
    assert pacer.trigger_bytes == UNLIMITED


def test_what_else_counts_lowers_the_limit_goal() -> None:
    pacer = Pacer(memory_limit_bytes=100 * MIB, percent=None)
    alone = pacer.goal_bytes
    pacer.set_other(50 * MIB)
    assert pacer.goal_bytes == 50 * MIB - 50 * MIB // 100 * 3
    pacer.set_other(0)
    assert pacer.goal_bytes == alone


def test_the_goal_waits_for_a_sweep_that_still_runs() -> None:
    pacer = Pacer(cores=4)
    pacer.start_cycle(4 * MIB)
    pacer.revise(5 * MIB, MIB)
    pacer.end_cycle(int(3.9 * MIB), swept=False)
    unswept = pacer.trigger_bytes
    pacer.finish_sweep()
    assert pacer.trigger_bytes <= unswept
    assert unswept >= int(3.9 * MIB) + MIB


@pytest.mark.parametrize(
    "wrong",
    [
        {"cores": 0},
        {"cores": 2.0},
        {"percent": -1},
        {"percent": float("nan")},
        {"percent": "100"},
        {"memory_limit_bytes": -1},
        {"minimum_heap_bytes": -1},
        {"globals_bytes": -1},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(sandhost.ConfigError, match=next(iter(wrong))):
        Pacer(**wrong)  # type: ignore[arg-type]


def test_a_cycle_ends_only_once() -> None:
    pacer = Pacer()
    with pytest.raises(RuntimeError):
        pacer.end_cycle(0)


# ---- the CPU limiter ----


def test_the_limiter_fills_only_beyond_half_of_the_time() -> None:
    limiter = CpuLimiter(4)
    for _ in range(1000):  # a quarter in the background, a quarter by assists
        limiter.elapse(0.01, assist_s=0.01, collecting=True)
    assert limiter.fill_s == pytest.approx(0)
    for _ in range(100):  # 3 of 4 core-seconds: 2 too many each second, and room for 4
        limiter.elapse(0.02, assist_s=0.04, collecting=True)
        assert limiter.limiting == (limiter.fill_s == limiter.capacity_s)
    assert limiter.limiting
    assert limiter.overflow_s == pytest.approx(0, abs=1e-9)
    limiter.elapse(0.5, assist_s=1.0, collecting=True)
    assert limiter.overflow_s == pytest.approx(1.0)
    assert limiter.fill_s == 4


def test_the_program_drains_the_limiter_and_quiet_earns_nothing() -> None:
    limiter = CpuLimiter(2)
    limiter.elapse(3600, collecting=False)
    assert limiter.fill_s == 0
    limiter.stop(1.0)
    assert limiter.limiting
    limiter.elapse(0.25, collecting=False)
    assert not limiter.limiting
    assert limiter.fill_s == pytest.approx(1.5)
    limiter.elapse(0.25, idle_s=0.5, collecting=False)  # nobody wanted to run
    assert limiter.fill_s == pytest.approx(1.5)


def test_a_full_limiter_ends_assists() -> None:
    pacer = Pacer(cores=2)
    cycle(pacer, 50 * MIB, 40 * MIB)
    pacer.start_cycle(70 * MIB)
    assert pacer.assist_ratio > 0
    pacer.elapse(10, assist_s=20)
    assert pacer.limiter.limiting
    assert pacer.assist_ratio == 0
    assert pacer.revise(71 * MIB, MIB) == 0


# ---- the adaptive percent ----


@pytest.mark.parametrize(
    ("rate", "percent"),
    [(-1, 200), (-0.01, 200), (0, 175), (0.01, 150), (0.02, 125), (0.03, 100), (0.05, 50), (9, 50)],
)
def test_the_percent_follows_the_rate(rate: float, percent: float) -> None:
    assert percent_of(rate) == pytest.approx(percent)


def grow(adaptive: AdaptivePercent, *rates: float) -> list[int]:
    """Observe windows of a second with these rates in MB/ms."""
    return [adaptive.observe(1.0, int(rate * 1e9)) for rate in rates]


def test_three_windows_are_needed_and_one_that_stands_out_moves_nothing() -> None:
    adaptive = AdaptivePercent(125)
    assert grow(adaptive, 0.02, 0.02) == [125, 125]
    assert grow(adaptive, 9.0, 0.02, 0.02, -9.0, 0.02) == [125] * 5


def test_a_window_moves_the_percent_by_a_quarter_of_a_hundred_at_most() -> None:
    adaptive = AdaptivePercent(100)
    assert grow(adaptive, 1, 1, 1, 1, 1) == [100, 100, 75, 50, 50]
    assert grow(adaptive, -1, -1, -1, -1) == [50, 75, 100, 125]


def test_a_window_without_time_is_no_window() -> None:
    adaptive = AdaptivePercent(100)
    assert adaptive.observe(0.0, 1 << 40) == 100
    assert grow(adaptive, 1, 1) == [100, 100]
