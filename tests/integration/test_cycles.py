"""What calls and plugins make goes with its last reference, and leaves nothing to Python's collector.

Which stops an event loop for as long as it looks.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import sandhost

TIMES = 20
PLUGIN = b"""(module (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "same") (param i64) (result i64) (local.get 0))
  (func (export "half") (param f64) (result f64) (f64.mul (local.get 0) (f64.const 0.5)))
  (func (export "trap") unreachable))"""
ASKS = b"""(module (import "env" "f" (func $f)) (func (export "ask") (call $f)))"""


@pytest.fixture
def only_by_hand() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def left_by(work: Callable[[], object]) -> int:
    """Return how many objects only the collector finds, after the work was done some times."""
    work()  # what is made once is not what is asked for
    gc.collect()
    for _ in range(TIMES):
        work()
    return gc.collect()


def fails(error: type[Exception], call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(error):
        call(*arguments)


# ---- plugins and calls ----


def test_a_plugin_goes_with_its_last_reference_whatever_was_called(host, only_by_hand):
    plugin = host.load(PLUGIN)
    assert plugin.call("add", 2, 3) == 5
    assert plugin.call("same", 2**64 - 1) == -1, "an argument that is packed a second time"
    with plugin.spawn() as guest:
        assert guest.func("half")(3) == 1.5
        assert asyncio.run(guest.call_async("add", 2, 3)) == 5
    gone = weakref.ref(plugin)
    gc.collect()  # asyncio.run's own
    del plugin, guest
    assert gone() is None


def test_calls_that_fail_leave_nothing(host, only_by_hand):
    plugin = host.load(PLUGIN)
    host.tenant("none", guests=0)
    with plugin.spawn() as guest:
        for function, error in (("trap", sandhost.GuestTrap), ("nope", sandhost.ConfigError)):
            assert left_by(lambda f=function, e=error: fails(e, guest.call, f)) == 0
            assert left_by(lambda f=function, e=error: fails(e, plugin.call, f)) == 0
    refused = lambda: plugin.spawn(tenant="none")  # noqa: E731
    assert left_by(lambda: fails(sandhost.QuotaExceeded, refused)) == 0


def test_awaited_calls_that_fail_leave_nothing(host, only_by_hand):
    plugin = host.load(PLUGIN)

    async def run() -> None:
        async def again(call: Callable[[], Awaitable[Any]]) -> int:
            for times in (1, TIMES):
                gc.collect()
                for _ in range(times):
                    with pytest.raises(sandhost.GuestTrap):
                        await call()
            return gc.collect()

        assert await again(lambda: plugin.call_async("trap")) == 0
        async with plugin.spawn_async() as guest:
            assert await again(lambda: guest.call_async("trap")) == 0

    asyncio.run(run())


def test_spawns_that_fail_with_a_host_function_that_knows_its_guest_leave_nothing(
    host, only_by_hand
):
    @host.function("env", "f")
    def f(guest: sandhost.Guest) -> None:
        raise KeyError(guest.id)

    plugin = host.load(ASKS)
    host.tenant("none", guests=0)
    refused = lambda: plugin.spawn(tenant="none")  # noqa: E731
    assert left_by(lambda: fails(sandhost.QuotaExceeded, refused)) == 0
