"""Whole lives: `plugin.call` and `snapshot.call` spawn, call and close in one crossing."""

from __future__ import annotations

import pytest
from helpers import POLICIES, Background, balanced, collected, guest_file

import sandhost
from sandhost import Limits


def test_a_call_of_a_plugin_is_a_guest_of_its_own(host):
    plugin = host.load(guest_file("stateful"))
    for _ in range(3):
        assert plugin.call("starts") == 1
        assert plugin.call("store", 100, 7) is None
        assert plugin.call("load", 100) == 0
    stats = plugin.stats()
    assert (stats.spawns, stats.calls, stats.guests_live) == (9, 9, 0)


def test_a_call_of_a_snapshot_goes_on_from_there(host):
    plugin = host.load(guest_file("stateful"))
    with plugin.warm("store", (100, 7)) as snapshot:
        assert snapshot.call("load", 100) == 7
        snapshot.call("store", 100, 8)
        assert snapshot.call("load", 100) == 7
    with pytest.raises(sandhost.GuestClosed):
        snapshot.call("load", 100)


def test_every_kind_of_value_goes_in_and_comes_out(host):
    plugin = host.load(guest_file("types"))
    with plugin.spawn() as guest:
        for name, value in (
            ("i32", -5),
            ("i64", 2**64 - 1),
            ("f32", 1.5),
            ("f64", -2.25),
            ("v128", bytes(range(16))),
        ):
            assert plugin.call(name, value) == guest.call(name, value)
        assert plugin.call("nothing") is None


def test_reseeding_happens_before_the_call(host):
    plugin = host.load(
        b"""(module (global $s (mut i64) (i64.const 0)) (func (export "seed") (result i64) (global.get $s))
        (func (export "reseed") (param i64) (global.set $s (local.get 0))))"""
    )
    with plugin.warm(reseed="reseed") as snapshot:
        assert snapshot.call("seed") != snapshot.call("seed")


@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_goes_wrong_the_guest_is_closed(policy):
    raised = LookupError("from the host")

    def raising() -> None:
        raise raised

    with sandhost.Host(cache=False, max_guests=4, reclaim=policy) as host:
        host.function("env", "f")(raising)
        calling = host.load(
            b"""(module (import "env" "f" (func $f)) (memory (export "memory") 1)
            (func (export "go") (call $f)))"""
        )
        trap = host.load(guest_file("unreachable"))
        spin = host.load(guest_file("spin"))
        add = host.load(guest_file("add"))
        stateful = host.load(guest_file("stateful"))
        with sandhost.Host(cache=False, max_guests=4) as other:
            foreign = other.tenant("t")
            for _ in range(20):
                with pytest.raises(LookupError) as caught:
                    calling.call("go")
                assert caught.value is raised
                with pytest.raises(sandhost.GuestTrap):
                    trap.call("trap")
                with pytest.raises(sandhost.DeadlineExceeded):
                    spin.call("spin", limits=Limits(deadline=0.01))
                with pytest.raises(sandhost.ConfigError, match="exports no function"):
                    add.call("missing")
                with pytest.raises(TypeError, match="takes 2 arguments"):
                    add.call("add", 1)
                with pytest.raises(TypeError):
                    add.call("add", "1", 2)
                with pytest.raises(OverflowError, match="does not fit an i32"):
                    add.call("add", 1, 2**40)
                with pytest.raises(OverflowError):
                    add.call("add", 1, 2**70)
                with pytest.raises(sandhost.ConfigError, match="fuel"):
                    add.call("add", 1, 2, limits=Limits(fuel=5))
                with pytest.raises(sandhost.ConfigError, match="another host"):
                    add.call("add", 1, 2, tenant=foreign)
                with pytest.raises(sandhost.OutOfMemory):
                    stateful.call("size", limits=Limits(memory=1000))
                assert add.call("add", 1, 2, tenant="t") == 3
        collected()
        balanced(host)


def test_a_host_function_that_asks_for_the_guest_gets_it(host):
    seen = []

    @host.function("env", "f")
    def f(guest: sandhost.Guest) -> None:
        seen.append(guest.memory.read(0, 2))

    plugin = host.load(
        b"""(module (import "env" "f" (func $f)) (memory (export "memory") 1)
        (data (i32.const 0) "me") (func (export "go") (call $f)))"""
    )
    plugin.call("go")
    assert seen == [b"me"]


def test_plugins_of_wasi_can_be_called_so_too(host):
    assert host.load(guest_file("echo")).call("_start") is None


def test_threads_live_lives_side_by_side(host):
    plugin = host.load(guest_file("stateful"))
    snapshot = plugin.warm("set", (5,))

    def live(number):
        for _ in range(500):
            assert plugin.call("starts", tenant=f"t{number}") == 1
            assert snapshot.call("i") == 5
        return True

    assert all(thread.result() for thread in [Background(live, n) for n in range(4)])
    snapshot.close()


def test_a_closed_host_lives_none():
    with sandhost.Host(cache=False, max_guests=4) as host:
        plugin = host.load(guest_file("add"))
    with pytest.raises(sandhost.GuestClosed):
        plugin.call("add", 1, 2)
