"""A service that gets ten times what it can do does what it can, and tells the others at once. Simulated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import examples
from helpers.simload import Load, Outcome, accepted, quantile, refusals

from sandhost.errors import ConfigError
from sandhost.serve.concurrency import AdaptiveLimit
from sandhost.serve.overload import Admission
from sandhost.serve.problems import DeadlinePassed, TooMany
from sandhost.serve.shares import Terms

TAKES_S = 0.010


def p99(outcomes: list[Outcome]) -> float:
    return quantile(accepted(outcomes), 0.99)


def of(outcomes: list[Outcome], tenant: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.tenant == tenant]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_ten_times_too_much_slows_nobody_who_is_let_in_and_is_over_when_it_is_over(
    seed: int,
) -> None:
    cores = 16
    capacity = cores / TAKES_S  # 1,600 requests a second
    load = Load(cores=cores, seed=seed)
    load.arrivals("acme", capacity / 2, 5)
    calm = load.run(5)
    assert refusals(calm) == []

    load.arrivals("acme", 10 * capacity, 2)
    overload = load.run(2)
    assert p99(overload) <= 2 * p99(calm)
    assert len(accepted(overload)) >= 0.9 * 2 * capacity  # what it can do, it does
    refused = refusals(overload)
    assert len(refused) > 8 * 2 * capacity
    assert quantile(refused, 0.99) <= TAKES_S  # as good as at once: pushed out by a fresher one
    assert max(refused) <= 0.05 + 0.006  # also in the first moment, which might be a burst
    assert all(
        isinstance(outcome.problem, TooMany) and 0.05 <= outcome.problem.retry_after_s <= 5
        for outcome in overload
        if outcome.problem is not None
    )

    load.arrivals("acme", capacity / 2, 2)
    load.run(2)  # to recover
    load.arrivals("acme", capacity / 2, 3)
    after = load.run(3)
    assert refusals(after) == []
    assert p99(after) <= 1.25 * p99(calm)
    load.run(1)
    assert load.admission.stats().in_flight == load.admission.stats().tenants == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_many_tenants_with_too_much_wait_for_no_refusal_and_leave_no_place_empty(seed: int) -> None:
    """Also where it is learned under load what a request takes, and some tenant has a bit of luck now and then."""
    takes_s, tenants = 0.010, 20
    capacity = 2 / takes_s
    load = Load(cores=2, seed=seed)
    for number in range(tenants):
        load.arrivals(f"t{number}", 10 * capacity / tenants, 31, takes_s)
    load.run(1)
    outcomes = load.run(30)
    assert len(accepted(outcomes)) >= 0.85 * 30 * capacity
    assert quantile(refusals(outcomes), 0.999) <= takes_s


def test_without_admission_the_same_load_would_be_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would see if nobody were refused: so that it can fail."""
    load = Load(cores=16, limit=AdaptiveLimit(100_000, 100_000, 100_000))
    load.arrivals("acme", 16_000, 0.25)
    assert p99(load.run(60)) > 1.0


def test_the_limit_finds_what_the_service_can_do_from_either_side() -> None:
    for cores, seconds in (
        (4, 11),
        (16, 4),
    ):  # in the first, it looks once whether that is still so
        for initial in (4, 500):
            load = Load(cores=cores, limit=AdaptiveLimit(initial))
            load.arrivals("acme", cores / TAKES_S / 4, 2)  # what a request takes without load
            load.run(2)
            load.arrivals("acme", 2 * cores / TAKES_S, seconds)
            load.run(seconds)
            assert 0.8 * cores <= load.admission.stats().limit <= 2.5 * cores


def test_the_limit_follows_a_service_that_gets_slower_for_good() -> None:
    load = Load(cores=8)
    load.arrivals("acme", 1500, 5)
    load.run(5)
    load.arrivals(
        "acme", 400, 30, takes_s=0.040
    )  # each takes four times as long, for its own reasons
    load.run(30)
    assert 5 <= load.admission.stats().limit <= 24


@pytest.mark.parametrize("hostile_takes_s", [0.001, 0.010, 5.0])
def test_a_tenant_that_floods_delays_no_other(hostile_takes_s: float) -> None:
    load = Load(cores=16, limit=AdaptiveLimit(20, least=16))
    load.arrivals("good", 200, 3)
    alone = load.run(3)
    load.arrivals("hostile", 8000 if hostile_takes_s < 1 else 500, 3, takes_s=hostile_takes_s)
    load.run(1)
    load.arrivals("good", 200, 2)
    beside = of(load.run(2), "good")
    assert len(refusals(beside)) <= 0.01 * len(beside)
    assert p99(beside) <= 2 * p99(alone)


def test_tenants_that_want_more_than_there_is_get_what_they_weigh() -> None:
    load = Load(cores=16, terms={"one": Terms(1.0), "three": Terms(3.0)}.__getitem__)
    load.arrivals("one", 3000, 3)
    load.arrivals("three", 3000, 3)
    outcomes = load.run(3)
    one, three = (len(accepted(of(outcomes, tenant))) for tenant in ("one", "three"))
    assert 2.4 <= three / one <= 3.6


def test_many_small_tenants_and_a_large_one_all_get_in() -> None:
    load = Load(cores=16)
    load.arrivals("large", 3000, 4)
    for number in range(50):
        load.arrivals(f"small-{number}", 10, 4)  # a third of what there is, together
    outcomes = load.run(4)
    small = [outcome for outcome in outcomes if outcome.tenant != "large"]
    assert len(refusals(small)) <= 0.02 * len(small)


def test_what_has_waited_too_long_is_not_started() -> None:
    load = Load(cores=4, limit=AdaptiveLimit(4, 4, 4), wait_s=0.5)
    load.arrivals("acme", 2000, 3, deadline_s=0.030)
    outcomes = load.run(4)
    assert all(
        outcome.started_s is None or outcome.started_s - outcome.arrived_s < 0.030
        for outcome in outcomes
    )
    assert any(isinstance(outcome.problem, DeadlinePassed) for outcome in outcomes)
    assert len(accepted(outcomes)) > 0.8 * 3 * 400  # nothing was done for nobody


def test_a_deadline_that_is_over_is_refused_at_once() -> None:
    load = Load()
    load.one("acme", TAKES_S, deadline_s=0.0)
    (outcome,) = load.outcomes
    assert isinstance(outcome.problem, DeadlinePassed)
    assert load.admission.stats().refused == {"deadline": 1}


def test_memory_pressure_lowers_the_limit_and_at_last_refuses_all() -> None:
    level = 0
    load = Load(limit=AdaptiveLimit(16, 16, 16), pressure=lambda: level)
    limits = []
    for level in range(5):  # noqa: B007 - `pressure` reads it
        limits.append(load.admission.stats().limit)
    assert limits == [16, 12, 8, 0, 0]
    level = 0
    for _ in range(40):
        load.one("acme", TAKES_S)
    assert load.admission.stats().waiting > 0
    level = 3
    load.one("acme", TAKES_S)
    refused = [outcome for outcome in load.outcomes if outcome.problem is not None]
    assert load.admission.stats().waiting == 0  # those in line too
    assert refused[-1].problem.retry_after_s == 1.0
    assert load.admission.stats().in_flight >= 16  # those in service go on
    level = 0
    load.run(1)
    load.one("acme", TAKES_S)
    load.run(1)
    assert load.outcomes[-1].problem is None


def test_a_burst_is_not_overload() -> None:
    load = Load(cores=16)
    load.arrivals("acme", 400, 3)
    load.run(3)
    for _ in range(50):  # three times what is there, at once
        load.one("acme", TAKES_S)
    burst = load.run(1)
    assert refusals(burst) == []


def test_quick_failures_say_nothing_and_slow_ones_that_it_is_slow() -> None:
    limit = AdaptiveLimit(20)
    for number in range(300):
        limit.sample(number * 0.01, 0.010, 20)
        limit.sample(number * 0.01, 0.0001, 20, done=False)
    before = limit.value
    assert before >= 20
    for number in range(300, 600):  # given up after a second
        limit.sample(number * 0.01, 1.0, limit.value, done=False)
    assert limit.value < before / 2


@settings(max_examples=examples(100))
@given(
    st.integers(1, 10).flatmap(
        lambda least: st.tuples(st.just(least), st.integers(least, 50), st.integers(50, 200))
    ),
    st.lists(
        st.tuples(st.floats(0, 10), st.floats(0, 100), st.integers(0, 500), st.booleans()),
        max_size=400,
    ),
)
def test_the_limit_stays_where_it_may(sizes, samples) -> None:
    least, initial, most = sizes
    limit = AdaptiveLimit(initial, least, most)
    now_s = 0.0
    for pause_s, elapsed_s, in_flight, done in samples:
        now_s += pause_s
        limit.sample(now_s, elapsed_s, in_flight, done=done)
        assert max(1, least // 2) <= limit.value <= most


@settings(max_examples=examples(100))
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "end", "fail", "give up", "wait", "press"]),
            st.integers(0, 3),
            st.floats(0, 0.1),
        ),
        max_size=120,
    )
)
def test_every_request_is_settled_once_and_the_books_balance(steps) -> None:
    now_s, level = 0.0, 0
    admission = Admission(
        AdaptiveLimit(3, 1, 5), wait_s=0.05, clock=lambda: now_s, pressure=lambda: level
    )
    live: list[tuple] = []
    settled: dict[int, int] = {}
    finished = 0
    for number, (step, choice, pause_s) in enumerate(steps):
        if step == "come":
            settled[number] = 0

            def settle(problem, number=number) -> None:
                settled[number] += 1

            deadline_s = None if choice == 0 else pause_s * 5
            live.append((number, admission.request(f"t{choice}", deadline_s, settle)))
        elif step in ("end", "fail", "give up") and live:
            number, request = live.pop(choice % len(live))
            before = settled[number]
            admission.finish(request, done=step == "end")
            assert settled[number] == before
            finished += 1
        elif step == "press":
            level = choice
        else:
            now_s += pause_s
            admission.turn()
        stats = admission.stats()
        assert stats.in_flight == sum(request.started_s is not None for _, request in live)
        assert stats.waiting == sum(not request.settled for _, request in live)
        assert all(count <= 1 for count in settled.values())
        assert stats.in_flight <= 2 * (5 + 2) or level
        assert bool(stats.tenants) == bool(stats.in_flight or stats.waiting)
    for _, request in live:
        admission.finish(request, done=True)
    assert admission.stats()[1:4] == (0, 0, 0)


@pytest.mark.parametrize("sizes", [(0, 0, 1), (1, 2, 3), (5, 4, 3)])
def test_limits_that_cannot_be_meant_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        AdaptiveLimit(*sizes)
    with pytest.raises(ConfigError):
        Admission(wait_s=0)
