"""What always holds of the pacer, whatever it is told."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandhost.gc import goals
from sandhost.gc.limiter import CpuLimiter
from sandhost.gc.pacer import Pacer
from sandhost.limits import UNLIMITED

SIZES = st.integers(0, 1 << 44)
PERCENTS = st.none() | st.integers(0, 2000) | st.floats(0, 2000)
LIMITS = st.none() | SIZES


@given(
    percent=PERCENTS,
    limit=LIMITS,
    marked=SIZES,
    roots=SIZES,
    minimum=SIZES,
    other=SIZES,
    over=SIZES,
    runway=st.floats(0, 1e15),
    triggered=st.none() | SIZES,
    unswept=st.none() | SIZES,
)
def test_any_plan_keeps_its_bounds(
    percent, limit, marked, roots, minimum, other, over, runway, triggered, unswept
):
    limit_goal = goals.limit_goal(limit, marked, other, over)
    plan = goals.plan(
        percent_goal_bytes=goals.percent_goal(marked, roots, percent, minimum),
        limit_goal_bytes=limit_goal,
        marked_bytes=marked,
        runway_bytes=runway,
        smallest_window_bytes=minimum,
        triggered_bytes=triggered,
        unswept_from_bytes=unswept,
    )
    assert 0 <= plan.trigger_bytes <= plan.goal_bytes <= UNLIMITED
    assert plan.goal_bytes >= marked
    assert plan.trigger_bytes >= marked or plan.goal_bytes == plan.trigger_bytes
    if limit is not None and limit_goal < goals.percent_goal(marked, roots, percent, minimum):
        assert plan.limited
        assert plan.goal_bytes == limit_goal  # nothing moves it up
    if limit is not None and other + over == 0 and limit >= 2 << 20:
        assert limit_goal <= max(limit - max(limit // 100 * 3, 1 << 20), marked)
    if plan.goal_bytes > marked:
        way = plan.goal_bytes - marked
        assert plan.trigger_bytes >= marked + (way // 64) * 45 - 1


class Histories(RuleBasedStateMachine):
    """Cycles in any order of sizes, with settings that change at any time."""

    @initialize(
        cores=st.integers(1, 128), percent=PERCENTS, limit=LIMITS, minimum=st.integers(0, 1 << 30)
    )
    def make(self, cores, percent, limit, minimum):
        self.pacer = Pacer(
            cores=cores,
            percent=percent,
            memory_limit_bytes=limit,
            minimum_heap_bytes=minimum,
        )

    @rule(percent=PERCENTS)
    def set_percent(self, percent):
        self.pacer.percent = percent

    @rule(limit=LIMITS)
    def set_limit(self, limit):
        self.pacer.memory_limit_bytes = limit

    @rule(other=SIZES, over=SIZES)
    def set_other(self, other, over):
        self.pacer.set_other(other, over)

    @rule(size=SIZES)
    def set_globals(self, size):
        self.pacer.set_globals(size)

    @rule(
        live=SIZES,
        scannable=st.none() | SIZES,
        roots=st.none() | SIZES,
        periodic=st.booleans(),
    )
    def start(self, live, scannable, roots, periodic):
        self.pacer.start_cycle(
            live, scannable_bytes=scannable, roots_worst_bytes=roots, periodic=periodic
        )

    @precondition(lambda self: self.pacer.collecting)
    @rule(live=SIZES, work=SIZES, roots=SIZES)
    def revise(self, live, work, roots):
        assert self.pacer.revise(live, work, roots) == self.pacer.assist_ratio

    @precondition(lambda self: self.pacer.collecting)
    @rule(marked=SIZES, utilization=st.floats(0, 1), idle=st.floats(0, 1), swept=st.booleans())
    def end(self, marked, utilization, idle, swept):
        self.pacer.end_cycle(marked, utilization, idle, swept=swept)
        assert self.pacer.marked_bytes == self.pacer.live_bytes == marked
        assert self.pacer.assist_ratio == 0

    @rule()
    def finish_sweep(self):
        self.pacer.finish_sweep()

    @rule(seconds=st.floats(0, 1e6), assist=st.floats(0, 1e6), idle=st.floats(0, 1e6))
    def elapse(self, seconds, assist, idle):
        self.pacer.elapse(seconds, assist_s=assist, idle_s=idle)

    @invariant()
    def bounds(self):
        pacer = getattr(self, "pacer", None)
        if pacer is None:
            return
        assert pacer.trigger_bytes <= pacer.goal_bytes <= UNLIMITED
        assert pacer.goal_bytes >= pacer.marked_bytes
        assert pacer.limit_plan().trigger_bytes <= pacer.limit_plan().goal_bytes
        assert pacer.goal_bytes <= pacer.limit_plan().goal_bytes  # the limit wins
        assert math.isfinite(pacer.assist_ratio)
        assert pacer.assist_ratio >= 0
        assert math.isfinite(pacer.cons_mark)
        assert pacer.cons_mark >= 0
        assert 0 <= pacer.limiter.fill_s <= pacer.limiter.capacity_s


TestHistories = Histories.TestCase


@given(
    st.lists(
        st.tuples(st.floats(0, 100), st.floats(0, 1), st.floats(0, 1), st.booleans()), max_size=50
    ),
    st.integers(1, 64),
)
def test_the_limiter_opens_only_after_more_collecting_than_it_holds(stretches, cores):
    limiter = CpuLimiter(cores)
    collecting = 0.0
    for seconds, assist, idle, marks in stretches:
        total = seconds * cores
        limiter.elapse(seconds, assist_s=assist * total, idle_s=idle * total, collecting=marks)
        collecting += assist * total + (total / 4 if marks else 0)
        assert 0 <= limiter.fill_s <= limiter.capacity_s
        if limiter.limiting:
            assert collecting >= limiter.capacity_s - 1e-6
