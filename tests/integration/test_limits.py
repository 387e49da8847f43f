"""Limits of memory and tables, what a limit may be, and that a host outlives each."""

from __future__ import annotations

import threading

import pytest
from helpers import (
    DEADLINE,
    WASM_PAGE,
    balanced,
    guest_file,
)

import sandhost
from sandhost import Limits

MIB = 2**20


# ---- memory ----


def test_growth_beyond_the_guests_own_limit_is_out_of_memory_with_the_figures(any_host):
    plugin = any_host.load(guest_file("grow_forever"))
    with plugin.spawn(limits=Limits(memory="1 MiB")) as guest:
        with pytest.raises(sandhost.OutOfMemory) as caught:
            guest.call("until_refused_touching")
        assert "the guest's limit is 1 MiB" in str(caught.value)
        assert guest.stats().memory_bytes == guest.memory.size == MIB
        assert guest.call.__self__ is guest
    stats = balanced(any_host)
    assert stats.memory_refusals >= 1


def test_a_refused_growth_is_minus_one_to_a_guest_that_asks(host):
    with host.load(guest_file("no_max_memory")).spawn(limits=Limits(memory=4 * WASM_PAGE)) as guest:
        size = guest.call("size")
        assert guest.call("grow", 4 - size) == size
        assert guest.call("grow", 1) == -1
        assert guest.call("grow", 2**16) == -1
        assert guest.call("grow", 2**32 - 1) == -1
        assert guest.call("grow", 0) == 4
        guest.call("poke", 4 * WASM_PAGE - 1, 9)
        with pytest.raises(sandhost.GuestTrap) as caught:
            guest.call("peek", 4 * WASM_PAGE)
        assert caught.value.code == "memory_out_of_bounds"


def test_a_trap_long_after_a_refused_growth_is_still_a_trap(host):
    """Only a call that was refused memory and then traps has run out of memory."""
    text = b"""(module (memory (export "memory") 1)
        (func (export "grow") (result i32) (memory.grow (i32.const 100)))
        (func (export "trap") unreachable))"""
    with host.load(text).spawn(limits=Limits(memory=WASM_PAGE)) as guest:
        assert guest.call("grow") == -1
        with pytest.raises(sandhost.GuestTrap) as caught:
            guest.call("trap")
        assert caught.value.code == "unreachable"


def test_a_first_memory_beyond_the_guests_limit_fails_the_spawn(any_host):
    plugin = any_host.load(guest_file("bss"))
    for _ in range(3):
        with pytest.raises(sandhost.OutOfMemory, match="16 MiB.*the guest's limit is 1 MiB"):
            plugin.spawn(limits=Limits(memory="1 MiB"))
    assert balanced(any_host).spawn_failures == 3


def test_the_tenants_limit_holds_over_its_guests_and_no_one_elses(any_host):
    tenant = any_host.tenant("acme", memory_limit="40 MiB")
    plugin = any_host.load(guest_file("bss"))
    with plugin.spawn(tenant="acme"), plugin.spawn(tenant=tenant):
        assert tenant.memory_bytes == 32 * MIB
        for _ in range(3):
            with pytest.raises(sandhost.OutOfMemory, match="its tenant's limit is 40 MiB"):
                plugin.spawn(tenant="acme")
        plugin.spawn(tenant="other").close()
        plugin.spawn().close()
    assert (tenant.memory_bytes, tenant.memory_peak_bytes) == (0, 32 * MIB)
    plugin.spawn(tenant="acme").close()


def test_growth_beyond_the_tenants_limit_is_refused(host):
    host.tenant("acme", memory_limit="1 MiB")
    plugin = host.load(guest_file("grow_forever"))
    with plugin.spawn(tenant="acme") as one, plugin.spawn(tenant="acme") as two:
        with pytest.raises(sandhost.OutOfMemory, match="its tenant's limit is 1 MiB"):
            one.call("until_refused")
        with pytest.raises(sandhost.OutOfMemory):
            two.call("until_refused")
        assert one.memory.size + two.memory.size == MIB
    assert host.tenant("acme").memory_bytes == 0


@pytest.mark.parametrize("policy", ["immediate", "warm", "lazy"])
def test_the_hosts_limit_holds_over_all_tenants_and_comes_back_whole(policy):
    with sandhost.Host(cache=False, max_guests=64, memory_limit="40 MiB", reclaim=policy) as host:
        plugin = host.load(guest_file("bss"))
        for _ in range(20):
            with plugin.spawn(tenant="a") as one, plugin.spawn(tenant="b") as two:
                one.call("fill", 0, 16 * MIB, 1)
                two.call("fill", 0, MIB, 1)
                with pytest.raises(sandhost.OutOfMemory, match="the host's limit is 40 MiB"):
                    plugin.spawn(tenant="c")
        assert host.stats().memory_limit == 40 * MIB
        balanced(host)


def test_a_limit_of_one_byte_less_than_needed_refuses_and_the_exact_one_does_not(host):
    plugin = host.load(guest_file("secrets"))
    need = 4 * WASM_PAGE
    plugin.spawn(limits=Limits(memory=need)).close()
    with pytest.raises(sandhost.OutOfMemory):
        plugin.spawn(limits=Limits(memory=need - 1))


def test_several_memories_count_together(host):
    plugin = host.load(guest_file("multi_memory"))
    with plugin.spawn(limits=Limits(memory=5 * WASM_PAGE)) as guest:
        assert guest.stats().memory_bytes == 4 * WASM_PAGE
        assert guest.call("grow0", 1) == 1
        assert [guest.call("grow0", 1), guest.call("grow1", 1), guest.call("grow2", 1)] == [-1] * 3
    with pytest.raises(sandhost.OutOfMemory):
        plugin.spawn(limits=Limits(memory=3 * WASM_PAGE))


def test_all_regions_in_use_is_said_with_the_figure():
    with sandhost.Host(cache=False, max_guests=3) as host:
        plugin = host.load(guest_file("secrets"))
        guests = [plugin.spawn() for _ in range(3)]
        for _ in range(3):
            with pytest.raises(sandhost.RegionFullError, match="3 regions"):
                plugin.spawn()
        guests.pop().close()
        plugin.spawn().close()
        for guest in guests:
            guest.close()
        balanced(host)


def test_a_guest_that_needs_several_regions_takes_all_or_none():
    with sandhost.Host(cache=False, max_guests=4) as host:
        plugin = host.load(guest_file("multi_memory"))
        with plugin.spawn():
            for _ in range(5):
                with pytest.raises(sandhost.RegionFullError):
                    plugin.spawn()
            assert host.stats().regions_live == 3
        plugin.spawn().close()
        balanced(host)


# ---- tables ----


def test_table_growth_stops_at_its_limit(host):
    with host.load(guest_file("tables")).spawn(limits=Limits(table_elements=5000)) as guest:
        with pytest.raises((sandhost.GuestTrap, sandhost.LimitExceeded)):
            guest.call("until_refused")
        assert guest.call("size") <= 5000
        assert guest.call("grow", 10**6) == -1


def test_a_table_that_starts_beyond_the_limit_fails_the_spawn(host):
    plugin = host.load(guest_file("many_tables"))
    with pytest.raises(sandhost.LimitExceeded, match="64 elements; the limit is 63"):
        plugin.spawn(limits=Limits(table_elements=63))
    plugin.spawn(limits=Limits(table_elements=64)).close()


def test_tables_together_take_no_more_than_the_memory_limit(host):
    grow = b"".join(
        b'(func (export "grow%d") (result i32)'
        b" (table.grow %d (ref.null func) (i32.const 900000)))" % (k, k)
        for k in range(8)
    )
    plugin = host.load(b"(module " + b"(table 100 funcref)" * 8 + grow + b")")
    with plugin.spawn(limits=Limits(memory="64 KiB")) as guest:
        assert [guest.call(f"grow{k}") for k in range(8)] == [-1] * 8
    with plugin.spawn(limits=Limits(memory="64 MiB")) as guest:
        assert [guest.call(f"grow{k}") for k in range(8)] == [100] * 8
    with pytest.raises(sandhost.LimitExceeded, match="or memory, which bounds all tables"):
        plugin.spawn(limits=Limits(memory=8 * 8 * 99))


# ---- configuration ----


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": -1},
        {"memory": "16 XB"},
        {"memory": "lots"},
        {"memory": 1.5},
        {"memory": 2**70},
        {"deadline": 0},
        {"deadline": -1},
        {"deadline": float("nan")},
        {"deadline": float("inf")},
        {"deadline": "soon"},
        {"deadline": 1e300},
        {"fuel": 0},
        {"fuel": -5},
        {"fuel": 1.5},
        {"fuel": 2**63},
        {"table_elements": -1},
        {"table_elements": 2**63},
        {"table_elements": None},
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused_at_once(wrong):
    with pytest.raises(sandhost.ConfigError):
        Limits(**wrong)


def test_the_host_is_usable_after_each_limit_was_reached(host):
    add = host.load(guest_file("add"))
    spin, grow, recurse = (host.load(guest_file(n)) for n in ("spin", "grow_forever", "recurse"))
    limits = Limits(deadline=DEADLINE, memory="1 MiB")
    for plugin, name, arguments in [
        (spin, "spin", ()),
        (grow, "until_refused", ()),
        (recurse, "recurse", (1,)),
    ]:
        with plugin.spawn(limits=limits) as guest:
            with pytest.raises(sandhost.SandhostError):
                guest.call(name, *arguments)
        with add.spawn() as guest:
            assert guest.call("add", 20, 22) == 42
    assert threading.active_count() >= 1
