"""What of a turn of the loop tenants have: floods, bursts, overload, and tenants beside each other; tasks as well."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandhost.serve.shares import Shares, Terms
from sandhost.serve.steps import Steps

CALL_S, REFUSAL_S = 1e-4, 1e-5


class Loop:
    """A loop that takes turns, with sockets that are ready, and a clock that stands still but for work."""

    def __init__(self, wait_s: float = 0.05, terms: dict[str, Terms] | None = None) -> None:
        self.now_s, self.others_s = 100.0, 0.0
        """The time, and how much of it others had the processor."""
        self._soon: list[Callable[[], object]] = []
        self._later: list[tuple[float, Callable[[], object]]] = []
        self.shares = Shares(
            wait_s,
            lambda tenant: (terms or {}).get(tenant, Terms()),
            soon=self._soon.append,
            later=lambda s, work: self._later.append((self.now_s + s, work)),
            clock=lambda: self.now_s,
            worked=lambda: self.now_s - self.others_s,
        )
        self.served: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.waits_s: defaultdict[str, list[float]] = defaultdict(list)
        self.waiting: Counter[str] = Counter()

    def turn(self, ready: Iterable[str] = ()) -> float:
        """What waits, then what is ready, as the wire does it; return how long it took."""
        began_s = self.now_s
        soon, self._soon[:] = self._soon[:], []
        for work in soon:
            work()
        for tenant in ready:
            came_s = self.now_s
            if self.shares.must_wait(tenant):
                self.waiting[tenant] += 1
                self.shares.wait(tenant, lambda tenant=tenant, at=came_s: self._held(tenant, at))
            else:
                took_s = self._ask(tenant, came_s)
                self.shares.charge(tenant, took_s)
        return self.now_s - began_s

    def _held(self, tenant: str, came_s: float) -> None:
        self.waiting[tenant] -= 1
        self._ask(tenant, came_s)

    def _ask(self, tenant: str, came_s: float) -> float:
        self.waits_s[tenant].append(self.now_s - came_s)
        refused = self.shares.refuses(tenant)
        (self.refused if refused else self.served)[tenant] += 1
        took_s = REFUSAL_S if refused else CALL_S
        self.now_s += took_s
        return took_s

    def rest(self) -> None:
        """Take turns until nothing waits."""
        while self._soon or self._later:
            self.sleep()
            self.turn()

    def sleep(self) -> None:
        """Wait until there is something to do."""
        if not self._soon and self._later:
            at_s, work = self._later.pop(
                self._later.index(min(self._later, key=lambda one: one[0]))
            )
            self.now_s = max(self.now_s, at_s)
            work()


def test_a_burst_is_served_as_long_as_it_may_wait() -> None:
    loop = Loop(wait_s=0.05)
    loop.turn(["a"] * 400)
    loop.rest()
    assert not loop.refused
    assert loop.served["a"] == 400
    loop.now_s += 1
    loop.turn(["a"] * 1000)
    loop.rest()
    assert loop.refused["a"] > 400  # what would wait longer is refused
    assert max(loop.waits_s["a"]) < 0.06


def test_who_asks_for_little_waits_for_one_share_of_a_flood() -> None:
    loop = Loop()
    for number in range(500):
        loop.turn(["flood"] * 60 + [f"t{number % 7}"] + ["small"] * (number % 4 == 0))
    loop.rest()
    others = [wait for name, waits in loop.waits_s.items() if name != "flood" for wait in waits]
    assert max(others) < 0.0005
    assert not [name for name in loop.refused if name != "flood"]
    assert max(loop.waits_s["flood"]) > 0.005


def _with_a_flood(loop: Loop, turns: int) -> None:
    """Ten tenants that ask for little each, and one that asks for more than all of them."""
    for number in range(turns):
        loop.turn(["flood"] * 2 + [f"t{number % 10}"] * (number % 2))
        loop.now_s += CALL_S


def test_who_used_little_lately_goes_before_all_that_a_flood_has_ready() -> None:
    loop, others = Loop(), [f"t{number}" for number in range(10)]
    assert loop.turn(["flood"] * 3 + others) == pytest.approx(13 * CALL_S)  # as they came
    _with_a_flood(loop, 2000)
    loop.rest()
    loop.now_s += 0.005  # the machine slept
    served = loop.served["flood"]
    assert loop.turn(["flood"] * 3 + others) == pytest.approx(10 * CALL_S)
    assert loop.served["flood"] == served
    loop.rest()
    assert loop.served["flood"] + loop.refused["flood"] > served


def test_a_flood_gets_on_while_others_come_in_every_turn() -> None:
    loop = Loop(wait_s=100)
    _with_a_flood(loop, 2000)
    served, began_s = loop.served["flood"], loop.now_s
    for number in range(1000):
        loop.turn(["flood"] * 2 + [f"t{number % 10}"])
    # A slice is due after half a millisecond, and a request or two take some.
    assert loop.served["flood"] - served > (loop.now_s - began_s) / 0.001
    loop.rest()
    loop.now_s += 0.03  # nobody else came
    assert not loop.shares.must_wait("flood")


def test_who_gives_way_and_has_used_its_quota_goes_on_when_it_has_earned_some() -> None:
    loop = Loop(wait_s=100, terms={"flood": Terms(cpus=0.5)})
    _with_a_flood(loop, 2000)
    served = loop.served["flood"]
    loop.turn(["flood"] * 20 + ["t0"])
    while loop.served["flood"] == served:
        loop.turn(["t0"])
    for _ in range(30):
        loop.shares.charge("flood", 0.02)  # steps of its tasks
    loop.turn(["t0"])
    owed_s, began_s = -loop.shares._active["flood"].credit_s, loop.now_s
    assert owed_s > 0.05
    served = loop.served["flood"]
    while loop.served["flood"] == served:
        loop.sleep()
        loop.turn()
    assert loop.now_s - began_s == pytest.approx(owed_s / 0.5, abs=0.01)


@pytest.mark.parametrize("in_line", [True, False])
@pytest.mark.parametrize("worked", [True, False])
def test_who_was_interrupted_owes_nothing_for_that(worked: bool, in_line: bool) -> None:
    loop, turns = Loop(), 0

    def take_long() -> None:
        loop.now_s += 0.004
        loop.others_s += 0.0 if worked else 0.004

    loop.turn(["before", "a"])
    if in_line:
        loop.shares.wait("a", take_long)
        loop.turn()
    else:
        take_long()
        loop.shares.charge("a", 0.004)
    while loop.shares.must_wait("a"):
        loop.turn()
        turns += 1
    assert turns == (5 if worked else 0)  # two milliseconds are the most that it owes


def test_a_thousand_tenants_that_have_not_all_of_their_quota_take_nothing_of_a_turn() -> None:
    many = [f"t{number}" for number in range(1000)]
    loop = Loop(terms={tenant: Terms(cpus=0.01) for tenant in many})
    for tenant in many:
        loop.turn([tenant])
    loop.turn()
    loop.now_s += 0.2  # nobody goes before others for what was used before that
    for _ in range(20):
        loop.turn(["a", "b"])
    assert max(loop.waits_s["a"] + loop.waits_s["b"]) <= CALL_S, "of the other, in the same turn"


def test_what_a_tenant_used_of_its_quota_is_known_until_it_has_earned_it_again() -> None:
    loop = Loop(wait_s=100, terms={"a": Terms(cpus=0.01)})
    loop.turn(["b"])
    loop.turn()  # who is idle is looked through, as once a second
    loop.now_s += 0.7
    for _ in range(95):  # of a hundred that a second of its quota is worth
        loop.turn(["a"])
        loop.now_s += 0.0001
        loop.turn()
    loop.turn(["b"])
    loop.now_s += 0.5  # it earns fifty, and that second is over
    loop.turn(["b"])
    loop.turn()
    served = loop.served["a"]
    for _ in range(150):
        loop.turn(["a", "b"])
    assert 50 <= loop.served["a"] - served <= 70
    loop.rest()
    assert loop.served["a"] - served == 150
    loop.now_s += 2.1
    for _ in range(3):
        loop.turn(["b"])
    assert "a" not in loop.shares._idle


def test_who_has_too_much_for_a_tenth_of_a_second_is_refused_until_it_is_over() -> None:
    loop = Loop()
    for _ in range(400):
        loop.turn(["a"] * (100 - loop.waiting["a"]))
    assert loop.refused["a"] > 1000
    recent = loop.waits_s["a"][-100:]
    assert max(recent) < 0.005, "what is let in, or refused, has not waited for long"
    loop.rest()
    loop.now_s += 0.01  # nothing came
    loop.refused.clear()
    loop.turn(["a"] * 40)
    loop.rest()
    assert not loop.refused


def test_what_many_ask_for_together_is_overload_too_but_not_for_who_asks_for_little() -> None:
    loop = Loop()
    everybody = [f"t{number}" for number in range(200)]
    for number in range(1000):
        small = ["small"] if number % 8 == 0 else []
        loop.turn([one for one in everybody for _ in range(3 - loop.waiting[one])] + small)
    assert sum(loop.refused.values()) > 10_000
    assert loop.served["small"] == 125
    assert not loop.refused["small"]
    assert {f"t{number}" for number in range(200)} < set(loop.served)


def test_a_flood_is_no_reason_to_refuse_another_tenants_burst() -> None:
    loop = Loop()
    for _ in range(500):
        loop.turn(["flood"] * max(0, 100 - loop.waiting["flood"]) + ["small"])
    assert loop.refused["flood"]
    loop.turn(["small"] * 50)
    loop.rest()
    assert loop.refused["small"] == 0


@pytest.mark.parametrize("heavy", [3.0, 10.0])
def test_tenants_that_want_more_than_there_is_get_what_they_weigh(heavy: float) -> None:
    loop = Loop(wait_s=100, terms={"a": Terms(weight=heavy)})
    loop.turn(["b", "a"] * 4000)
    for _ in range(200):
        loop.turn()
    assert loop.served["a"] == pytest.approx(heavy * loop.served["b"], rel=0.3)


def test_what_took_long_is_paid_for_but_not_for_ever() -> None:
    loop = Loop()
    loop.shares.charge("a", 10.0)  # the machine slept
    assert loop.shares.must_wait("a")
    assert not loop.shares.has_time_to_refuse("a")
    assert loop.shares.has_time_to_refuse("b")
    turns = 0
    while loop.shares.must_wait("a"):
        loop.turn()
        turns += 1
    assert 3 <= turns <= 8


def test_a_machine_that_slept_costs_nobody_his_quota() -> None:
    loop = Loop(terms={"a": Terms(cpus=0.1)})
    loop.shares.charge("a", 10.0)
    loop.turn(["a"] * 4)
    loop.rest()
    assert loop.served["a"] == 4
    assert loop.now_s < 100.3


def test_who_has_to_rest_for_long_keeps_nobody_waiting_who_has_not() -> None:
    loop = Loop(terms={"slow": Terms(cpus=0.001), "a": Terms(cpus=0.5)}, wait_s=100)
    for tenant in ("slow", "a"):
        for _ in range(40):
            loop.shares.charge(tenant, 0.02)
    loop.turn(["slow"])
    loop.turn()
    loop.turn(["a"])
    loop.turn()
    came_s = loop.now_s
    while not loop.served["a"]:
        loop.sleep()
        loop.turn()
    assert loop.now_s - came_s < 1.0
    assert not loop.served["slow"]


def test_a_quota_of_processors_holds_for_the_loop_and_what_waits_for_it_is_no_work() -> None:
    loop = Loop(wait_s=10, terms={"a": Terms(cpus=0.2)})
    turns = 0
    while loop.now_s < 110:
        loop.sleep()
        loop.turn(["a"] * (64 - loop.waiting["a"]))
        turns += 1
    used_s = loop.served["a"] * CALL_S + loop.refused["a"] * REFUSAL_S
    assert used_s == pytest.approx(0.2 + 10 * 0.2, rel=0.1)
    assert loop.served["a"] > loop.refused["a"] / 10
    assert turns < 20_000, "it sleeps meanwhile"
    loop.served.clear()
    loop.turn(["a"] * 5 + ["b"] * 5)
    assert loop.served["b"] == 5
    loop.now_s += 2
    loop.rest()
    loop.served.clear()
    loop.turn(["a"] * 4)  # its quota is there again
    loop.turn()
    assert loop.served["a"] == 4


def test_what_fails_keeps_nobody_waiting() -> None:
    loop = Loop()

    def fails() -> None:
        raise ValueError("of one connection")

    loop.shares.charge("a", 0.001)
    loop.shares.wait("a", fails)
    loop.turn(["a"] * 3)
    loop.rest()
    assert loop.served["a"] == 3
    loop.turn(["a"])
    assert loop.served["a"] == 4


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("abcde"), max_size=200), st.floats(0, 0.02)), max_size=60
    )
)
def test_every_tenant_has_something_done_within_some_turns_and_nothing_is_forgotten(turns) -> None:
    loop = Loop(wait_s=1.0)
    came = 0
    for ready, rest_s in turns:
        before = loop.served + loop.refused
        wanted = set(ready)
        loop.turn(ready)
        for _ in range(24):  # all five may use much: a share of each of the others, in five slices
            loop.turn()
        came += len(ready)
        after = loop.served + loop.refused
        for tenant in wanted:
            assert after[tenant] > before[tenant]
        loop.now_s += rest_s
    loop.rest()
    assert sum((loop.served + loop.refused).values()) == came
    assert not +loop.waiting


# ---- steps of tasks ----


def test_a_task_makes_its_steps_in_turns_and_ends_as_its_work_does() -> None:
    async def main() -> None:
        shares = Shares(0.05)
        order: list[str] = []

        async def work(name: str) -> str:
            for _ in range(3):
                shares.charge("a", 0.0004)  # as if it had taken so long
                order.append(name)
                await asyncio.sleep(0)
            return name

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(Steps(work(name), shares, "a")) for name in "xy"]

        async def awaits() -> str:
            return await Steps(work("w"), shares, "a")

        tasks.append(loop.create_task(awaits()))
        other = loop.create_task(work_of_another(order))
        assert await asyncio.gather(*tasks, other) == ["x", "y", "w", "z"]
        assert order.index("z") <= 2  # not after all steps of all three
        assert Counter(order) == Counter(x=3, y=3, w=3, z=1)

        async def fails() -> None:
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await loop.create_task(Steps(fails(), shares, "a"))

    async def work_of_another(order: list[str]) -> str:
        order.append("z")
        return "z"

    asyncio.run(main())


@pytest.mark.parametrize("took_s", [CALL_S, 0.001])  # several in a turn, and one
def test_neither_steps_nor_requests_of_a_tenant_wait_for_all_of_the_other(took_s: float) -> None:
    loop = Loop()
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        loop.now_s += took_s

    loop.shares.charge("a", 0.001)
    for _ in range(40):
        loop.shares.wait_to_step("a", step)
    loop.turn(["a"] * 40)
    while steps < 20:
        loop.turn()
        assert abs(steps - loop.served["a"] - loop.refused["a"]) <= 1
    loop.rest()
    assert (steps, loop.served["a"] + loop.refused["a"]) == (40, 40)


def test_a_turn_that_fails_is_not_the_last_one() -> None:
    loop = Loop()
    known = {"a": Terms()}
    loop.shares = Shares(
        10.0,
        known.__getitem__,
        soon=loop._soon.append,
        later=lambda s, work: None,
        clock=lambda: loop.now_s,
    )
    loop.turn(["a"] * 8)
    loop.now_s += 2  # its terms are asked for anew
    before = known.pop("a")
    with pytest.raises(KeyError):
        loop.turn()
    known["a"] = before
    loop.turn(["a"])
    loop.rest()
    assert loop.served["a"] == 9


def test_tasks_with_long_steps_are_no_reason_to_refuse_a_request() -> None:
    loop = Loop()
    for _ in range(300):

        def step() -> None:
            loop.now_s += 0.01
            loop.shares.wait_to_step("a", step)

        loop.shares.wait_to_step("a", step)
        loop.turn([] if loop.waiting["a"] else ["a"])
    assert not loop.refused
    assert loop.served["a"] > 20


def test_cancelling_and_scopes_work_through_it() -> None:
    async def main() -> None:
        shares = Shares(0.05)
        seen: list[Any] = []

        async def work() -> None:
            with anyio.move_on_after(0.01) as scope:
                await anyio.sleep(10)
            seen.append(scope.cancelled_caught)
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0)
                group.cancel_scope.cancel()
            seen.append("rests")
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        task = asyncio.get_running_loop().create_task(Steps(work(), shares, "a"))
        while "rests" not in seen:
            await asyncio.sleep(0.001)
        shares.charge("a", 1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == [True, "rests", "cancelled"]

    asyncio.run(main())
