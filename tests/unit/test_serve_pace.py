"""How much of a turn of the loop calls may take: bursts, overload, and tenants beside each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from sandhost.serve.pace import Pace

CALL_S, REFUSAL_S = 1e-4, 1e-5


class Loop:
    """A loop whose turns serve what has come since the last one began."""

    def __init__(self, wait_s: float = 0.05) -> None:
        self.pace, self.now_s = Pace(wait_s), 100.0
        self.served: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def turn(self, ready: Sequence[str], weights: dict[str, float] | None = None) -> float:
        """Serve or refuse what is ready; return how long it took."""
        began_s = self.now_s
        self.pace.begin(began_s)
        for tenant in ready:
            if self.pace.admits(tenant, (weights or {}).get(tenant, 1.0), self.now_s):
                self.served[tenant] += 1
                self.now_s += CALL_S
            else:
                self.refused[tenant] += 1
                self.now_s += REFUSAL_S
        self.pace.end(self.now_s)
        return self.now_s - began_s


def test_a_burst_is_served_as_long_as_it_may_wait():
    loop = Loop(wait_s=0.05)
    assert loop.turn(["a"] * 400) > 0.03
    assert not loop.refused
    loop.now_s += 1
    assert loop.turn(["a"] * 1000) < 0.07  # what would wait longer is refused
    assert loop.served["a"] in range(400 + 499, 400 + 502)


def test_when_no_turn_is_short_for_a_while_turns_are_kept_short_and_at_once_long_again_after_it():
    loop = Loop()
    for _ in range(200):
        last_s = loop.turn(["a"] * 100)
    assert last_s < 0.003
    assert loop.refused["a"] > 100 * 50
    loop.refused.clear()
    loop.turn(["a"] * 5)  # short: whatever there was is over
    loop.turn(["a"] * 100)
    assert not loop.refused
    for _ in range(200):
        loop.turn(["a"] * 100)
    loop.now_s += 0.01  # nothing came: as well
    loop.refused.clear()
    loop.turn(["a"] * 100)
    assert not loop.refused


def test_who_asks_for_little_is_served_beside_a_flood():
    loop = Loop()
    for number in range(500):
        flood, others = ["flood"] * 60, [f"t{number % 7}", "small"]
        loop.turn(flood + others)
    assert loop.refused["flood"] > 10_000
    assert loop.refused["small"] == 0
    assert not any(loop.refused[f"t{k}"] for k in range(7))


def test_a_flood_is_no_reason_to_refuse_another_tenants_burst():
    loop = Loop()
    for _ in range(500):
        loop.turn(["flood"] * 60 + ["small"])
    loop.turn(["flood"] * 60 + ["small"] * 100)
    assert loop.refused["small"] == 0
    for _ in range(100):  # until it is none any more
        loop.turn(["flood"] * 60 + ["small"] * 100)
    assert loop.refused["small"] > 1000


def test_tenants_that_want_more_than_there_is_get_what_they_weigh():
    loop = Loop()
    for _ in range(2000):
        loop.turn(["b", "a", "a", "b"] * 40, {"a": 3.0})
    # Until the target whoever comes is served; past it, who had less for his weight.
    assert loop.served["a"] > 1.2 * loop.served["b"]
    assert loop.refused["b"] > loop.refused["a"]


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("abcde"), max_size=200), st.floats(0, 0.02)), max_size=60
    )
)
def test_every_tenant_has_a_call_in_every_turn_that_may_last_for_it(turns):
    loop = Loop(wait_s=1.0)  # longer than any turn here
    for ready, rest_s in turns:
        before = dict(loop.served)
        loop.turn(ready)
        for tenant in set(ready):
            assert loop.served[tenant] > before.get(tenant, 0)
        loop.now_s += rest_s
