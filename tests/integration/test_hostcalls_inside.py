"""Host functions: what they may do while their guest is in a call, and how long they live."""

from __future__ import annotations

import sys
import threading
import time
import weakref

import pytest
from helpers import DEADLINE, PATIENCE, Background, collected, guest_file
from helpers.importing import STARTS, importing

import sandhost
from sandhost import hostcalls


def test_the_memory_of_the_caller_can_be_read_and_written(host):
    def f(guest: sandhost.Guest, address: int, length: int) -> int:
        data = guest.memory.read(address, length)
        guest.memory.write(address, data.upper())
        return len(data)

    host.function("env", "f")(f)
    text = importing("i32 i32", "i32", memory='(memory (export "m") 1) (data (i32.const 8) "abc")')
    with host.load(text).spawn() as guest:
        assert guest.call("go", 8, 3) == 3
        assert guest.memory.read(8, 3) == b"ABC"
        with pytest.raises(sandhost.OutOfBounds):
            guest.call("go", -2, 3)


def test_a_start_function_reaches_the_host_and_the_memory(host):
    order = []

    def f(guest: sandhost.Guest) -> None:
        guest.memory.write(0, b"f was here")
        order.append("f")

    host.function("env", "f")(f)
    host.function("env", "g", "()")(lambda: order.append("g"))
    with host.load(STARTS).spawn() as guest:
        assert order == ["f", "g"]
        assert guest.memory.read(0, 10) == b"f was here"


def test_a_start_function_may_spawn_another_guest(host):
    depth = []

    def f() -> None:
        if len(depth) < 5:
            depth.append(1)
            with plugin.spawn() as inner:
                assert inner.memory.read(0, 5) == b"g was"

    def g(guest: sandhost.Guest) -> None:
        guest.memory.write(0, b"g was")

    host.function("env", "f")(f)
    host.function("env", "g")(g)
    plugin = host.load(STARTS)
    with plugin.spawn() as guest:
        assert guest.memory.read(0, 5) == b"g was"
    assert len(depth) == 5


def test_a_guest_is_entered_again_from_its_own_host_function(host):
    def descend(guest: sandhost.Guest, n: int) -> int:
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    with host.load(guest_file("deep_host")).spawn() as guest:
        assert guest.call("descend", 20) == 20
        assert guest.stats().host_calls == 20


@pytest.mark.parametrize("recursion_limit", [None, 10**6])
def test_turns_of_guest_and_host_without_end_end_in_a_clean_error(host, recursion_limit):
    def descend(guest: sandhost.Guest, n: int) -> int:
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(recursion_limit or before)
    try:
        with host.load(guest_file("deep_host")).spawn() as guest:
            for _ in range(3):
                with pytest.raises((RecursionError, sandhost.LimitExceeded, sandhost.GuestTrap)):
                    guest.call("descend", 10**6)
                assert guest.call("descend", 3) == 3
    finally:
        sys.setrecursionlimit(before)


def test_a_chain_of_different_guests_without_end_ends_in_a_clean_error(host):
    guests = []

    def descend(n: int) -> int:
        guest = plugin.spawn()
        guests.append(guest)
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    plugin = host.load(guest_file("deep_host"))
    with plugin.spawn() as guest:
        with pytest.raises((RecursionError, sandhost.SandhostError)):
            guest.call("descend", 10**6)
        for inner in guests:
            inner.close()
        del guests[:]
        assert guest.call("descend", 2) == 2
    for inner in guests:
        inner.close()


def test_another_guest_can_be_called(host):
    with host.load(guest_file("add")).spawn() as adder:
        host.function("env", "f", "(i32, i32) -> i32")(adder.func("add"))
        with host.load(importing("i32 i32", "i32")).spawn() as guest:
            assert guest.call("go", 40, 2) == 42


def test_a_trap_of_another_guest_passes_through(host):
    with host.load(guest_file("unreachable")).spawn() as trapping:

        def f(a: int) -> int:
            trapping.call("trap")
            return a

        host.function("env", "f")(f)
        with host.load(importing("i32", "i32")).spawn() as guest:
            with pytest.raises(sandhost.GuestTrap) as caught:
                guest.call("go", 1)
            assert caught.value.frames[-1].function == "trap"


def test_an_inner_error_that_is_caught_does_not_end_the_outer_call(host):
    def descend(guest: sandhost.Guest, n: int) -> int:
        if n == 3:
            for wrong in (lambda: guest.call("nope"), lambda: guest.call("descend", 2**40)):
                with pytest.raises((sandhost.ConfigError, OverflowError)):
                    wrong()
            with pytest.raises(ZeroDivisionError):
                guest.call("descend", 2)
            return 0
        if n == 1:
            raise ZeroDivisionError
        return guest.call("descend", n)

    host.function("env", "descend")(descend)
    with host.load(guest_file("deep_host")).spawn() as guest:
        assert guest.call("descend", 6) == 3
    assert not hostcalls.pending


def test_a_guest_cannot_be_closed_from_inside_its_own_call(host):
    def nop(guest: sandhost.Guest) -> None:
        with pytest.raises(sandhost.GuestBusy, match="inside its own call"):
            guest.close()
        guest.memory_at  # still there

    host.function("env", "nop")(nop)
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    guest = host.load(guest_file("hostcall")).spawn()
    guest.call("call_nop", 3)
    assert not guest.closed
    assert guest.call("call_inc", 10) == 10
    guest.close()


def test_a_host_function_that_closes_its_guest_and_lets_the_error_pass(host):
    def f(guest: sandhost.Guest, a: int) -> int:
        guest.close()
        return a

    host.function("env", "f")(f)
    with host.load(importing("i32", "i32", memory="(memory 1)")).spawn() as guest:
        guest.memory.write(0, b"kept")
        with pytest.raises(sandhost.GuestBusy):
            guest.call("go", 1)
        assert guest.memory.read(0, 4) == b"kept"


def test_a_host_function_that_closes_the_host_is_told_it_is_busy():
    host = sandhost.Host(cache=False, max_guests=8)

    def f(a: int) -> int:
        host.close()
        return a

    host.function("env", "f")(f)
    guest = host.load(importing("i32", "i32")).spawn()
    with pytest.raises((sandhost.GuestBusy, sandhost.GuestCancelled)):
        guest.call("go", 1)
    host.close()
    guest.close()


def test_a_host_function_that_sleeps_beyond_the_deadline_is_noticed_at_its_return(host):
    host.function("env", "f", "(i32) -> i32")(lambda a: time.sleep(3 * DEADLINE) or a)
    plugin = host.load(importing("i32", "i32"))
    with plugin.spawn(limits=sandhost.Limits(deadline=DEADLINE)) as guest:
        with pytest.raises(sandhost.DeadlineExceeded):
            guest.call("go", 1)
    assert host.stats().deadlines == 1


def test_a_guest_in_a_host_function_is_cancelled_at_its_return(host):
    inside, go_on = threading.Event(), threading.Event()

    def f(a: int) -> int:
        inside.set()
        assert go_on.wait(PATIENCE)
        return a

    host.function("env", "f")(f)
    with host.load(importing("i32", "i32")).spawn() as guest:
        call = Background(guest.call, "go", 1)
        assert inside.wait(PATIENCE)
        assert guest.cancel() is True
        go_on.set()
        with pytest.raises(sandhost.GuestCancelled):
            call.result()
        assert guest.call("go", 2) == 2, "the cancellation is used up"


def test_many_threads_call_through_guests_of_their_own(host):
    def f(guest: sandhost.Guest, a: int) -> int:
        assert guest.call("mine") == a
        return a + 1

    host.function("env", "f")(f)
    plugin = host.load(b"""(module (import "env" "f" (func $f (param i32) (result i32)))
        (global $g (mut i32) (i32.const 0))
        (func (export "mine") (result i32) (global.get $g))
        (func (export "go") (param i32) (result i32)
          (global.set $g (local.get 0)) (call $f (local.get 0))))""")
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for k in range(50):
            with plugin.spawn() as guest:
                assert guest.call("go", number * 1000 + k) == number * 1000 + k + 1
        return True

    assert all([w.result() for w in [Background(work, n) for n in range(8)]])
    assert plugin.stats().host_calls == 400


def test_host_functions_are_unbound_with_their_plugin(host):
    host.function("env", "f", "(i32) -> i32")(lambda a: a)
    numbers = set()
    for _ in range(20):
        plugin = host.load(importing("i32", "i32"))
        numbers.update(plugin._linked.numbers)
        plugin.spawn().close()
        del plugin
        collected()
    assert len(numbers) <= 5, "numbers are used again"


def test_a_host_function_that_holds_its_plugin_is_collected_with_it():
    class Marked:
        pass

    host = sandhost.Host(cache=False, max_guests=8)
    held = [Marked()]
    gone = weakref.ref(held[0])
    host.function("env", "f", "(i32) -> i32")(lambda a, held=held: a)
    held.append(host.load(importing("i32", "i32")))
    host.close()
    del host, held
    collected()
    assert gone() is None


def test_a_plugin_that_is_dropped_while_its_guest_lives_still_calls_back(host):
    host.function("env", "f", "(i32) -> i32")(lambda a: a + 1)
    guest = host.load(importing("i32", "i32")).spawn()
    collected()
    assert guest.call("go", 1) == 2
    guest.close()
