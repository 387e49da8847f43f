"""`call_async` of plugins and snapshots: a guest for one call, made on the event loop where it is short."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

import sandhost

MODULE = b"""(module
  (memory (export "memory") 1)
  (global $seen (mut i32) (i32.const 0))
  (func (export "count") (result i32)
    (global.set $seen (i32.add (global.get $seen) (i32.const 1))) (global.get $seen))
  (func (export "pair") (param i64 f64) (result f64 i64) (local.get 1) (local.get 0))
  (func (export "trap") unreachable)
  (func (export "spin") (param $n i64) (result i64)
    (loop $next
      (local.set $n (i64.sub (local.get $n) (i64.const 1)))
      (br_if $next (i64.gt_s (local.get $n) (i64.const 0))))
    (i64.const 7)))"""
STARTS = b"""(module (global $n (mut i32) (i32.const 0)) (func $start (global.set $n (i32.const 5))) (start $start)
  (func (export "n") (result i32) (global.get $n)))"""
LONG, ENDLESS = 300_000_000, 2**62


def test_each_call_has_a_guest_of_its_own():
    async def test() -> None:
        with sandhost.Host() as host:
            plugin = host.load(MODULE)
            assert [await plugin.call_async("count") for _ in range(3)] == [1, 1, 1]
            assert await plugin.call_async("pair", 2**63, 0.5) == (0.5, -(2**63))
            with plugin.spawn() as guest:
                guest.call("count")
                snapshot = guest.snapshot()
            assert [await snapshot.call_async("count") for _ in range(3)] == [2, 2, 2]
            assert await host.load(STARTS).call_async("n") == 5
            assert host.stats().guests_live == 0

    asyncio.run(test())


def test_what_goes_wrong_is_told_as_by_any_call():
    async def test() -> None:
        with sandhost.Host() as host:
            plugin = host.load(MODULE)
            with pytest.raises(sandhost.GuestTrap):
                await plugin.call_async("trap")
            with pytest.raises(sandhost.ConfigError, match="no function 'nothing'"):
                await plugin.call_async("nothing")
            with pytest.raises(TypeError):
                await plugin.call_async("spin")
            with pytest.raises(sandhost.DeadlineExceeded):
                await plugin.call_async("spin", ENDLESS, limits=sandhost.Limits(deadline=0.2))
            assert host.stats().guests_live == 0

    asyncio.run(test())


WIDE = 20  # more than C keeps room for on its stack
VALUES = f"""(module
  (func (export "i32") (param i32) (result i32) (local.get 0))
  (func (export "i64") (param i64) (result i64) (local.get 0))
  (func (export "f32") (param f32) (result f32) (local.get 0))
  (func (export "f64") (param f64) (result f64) (local.get 0))
  (func (export "v128") (param v128) (result v128) (local.get 0))
  (func (export "none") (param i32))
  (func (export "wide") (param {"i64 " * WIDE}) (result {"i64 " * WIDE})
    {" ".join(f"(local.get {k})" for k in range(WIDE))}))""".encode()


class Index:
    """A whole number that is no int; what it does when it is asked for it is up to the test."""

    def __init__(self, number: int, does: Callable[[], object] = lambda: None) -> None:
        self.number, self.does = number, does

    def __index__(self) -> int:
        self.does()
        return self.number

    __int__ = __index__


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("i32", (-(2**31),)),
        ("i32", (2**32 - 1,)),
        ("i32", (True,)),
        ("i32", (Index(7),)),
        ("i64", (-(2**63),)),
        ("i64", (2**64 - 1,)),
        ("f32", (1.1,)),
        ("f32", (3,)),
        ("f64", (-0.0,)),
        ("f64", (2**60,)),
        ("v128", (bytes(range(16)),)),
        ("none", (1,)),
        ("wide", tuple(range(WIDE))),
        ("i32", (2**32,)),
        ("i32", (-(2**31) - 1,)),
        ("i32", (2**70,)),
        ("i32", (1.0,)),
        ("i32", ("1",)),
        ("i32", ()),
        ("i32", (1, 2)),
        ("i64", (2**64,)),
        ("i64", (-(2**63) - 1,)),
        ("f64", (10**400,)),
        ("f64", ("x",)),
        ("v128", (b"short",)),
        ("v128", (5,)),
        ("wide", (0,)),
        ("wide", (*range(WIDE - 1), "x")),
        ("i32", (Index(1, lambda: 1 // 0),)),
    ],
)
def test_values_go_in_and_out_and_are_refused_as_by_any_call(name, arguments):
    with sandhost.Host() as host:
        plugin = host.load(VALUES)
        outcomes = []
        for call in (
            lambda: plugin.call(name, *arguments),
            lambda: asyncio.run(plugin.call_async(name, *arguments)),
        ):
            try:
                outcomes.append(repr(call()))
            except Exception as error:  # whatever it is, both have to raise it
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]
        assert host.stats().guests_live == 0


def test_what_a_call_starts_from_may_be_closed_while_its_arguments_are_looked_at():
    with sandhost.Host() as host:
        plugin = host.load(VALUES)
        snapshot = plugin.warm("i32", (1,))
        assert asyncio.run(snapshot.call_async("i32", Index(3, snapshot.close))) == 3
        with pytest.raises(sandhost.GuestClosed):
            asyncio.run(plugin.call_async("i32", Index(3, host.close)))


def test_a_long_call_leaves_the_loop_and_still_returns():
    async def test() -> None:
        with sandhost.Host() as host:
            plugin = host.load(MODULE)
            calling = asyncio.ensure_future(plugin.call_async("spin", LONG))
            turns = 0
            while not calling.done():
                turns += 1
                await asyncio.sleep(0)
            assert calling.result() == 7
            assert turns > 10  # it was beside the loop
            # Ended once on the loop, then called beside it; the next is not tried on the loop again.
            assert plugin.stats().spawns == 2
            assert await plugin.call_async("spin", 1) == 7
            assert plugin.stats().spawns == 3
            assert host.stats().guests_live == 0

    asyncio.run(test())


def test_a_call_that_is_cancelled_leaves_nothing():
    async def test() -> None:
        with sandhost.Host() as host:
            plugin = host.load(MODULE)
            calling = asyncio.ensure_future(plugin.call_async("spin", ENDLESS))
            await asyncio.sleep(0.05)
            calling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await calling
            assert host.stats().guests_live == 0

    asyncio.run(test())


def test_a_call_that_is_made_twice_counts_as_one_start():
    async def test() -> None:
        with sandhost.Host() as host:
            plugin = host.load(MODULE)
            tenant = host.tenant("acme", spawns_per_s=0.5)  # one at once
            assert await plugin.call_async("spin", LONG, tenant=tenant) == 7
            assert plugin.stats().spawns == 2

    asyncio.run(test())


def test_without_workers_a_long_call_takes_turns_with_the_loop():
    async def test() -> None:
        with sandhost.Host(workers=0) as host:
            plugin = host.load(MODULE)
            calling = asyncio.ensure_future(plugin.call_async("spin", LONG))
            longest, before = 0.0, time.monotonic()
            while not calling.done():
                await asyncio.sleep(0)
                now = time.monotonic()
                longest, before = max(longest, now - before), now
            assert calling.result() == 7
            assert longest < 5  # it took many turns, however busy the machine

    asyncio.run(test())
