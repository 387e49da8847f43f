"""Quotas of tenants in a time, the host that takes nothing new, and guests that it ends."""

from __future__ import annotations

import threading
import time

import anyio
import pytest
from helpers import Background, guest_file, wait_until
from helpers.waiting import load_waiting

import sandhost
from sandhost._ffi import ffi, lib


def test_a_tenant_has_as_many_guests_as_its_quota(host):
    plugin, tenant = host.load(guest_file("add")), host.tenant("a", guests=2)
    with plugin.spawn(tenant="a"), plugin.spawn(tenant="a"), plugin.spawn(tenant="b"):
        with pytest.raises(sandhost.QuotaExceeded, match="guests alive at once is 2") as caught:
            plugin.spawn(tenant="a")
        assert caught.value.retry_after_s is None
        with pytest.raises(sandhost.QuotaExceeded):
            plugin.call("add", 1, 2, tenant="a")
        assert tenant.stats().guests_live == 2
    assert plugin.call("add", 1, 2, tenant="a") == 3
    stats = tenant.stats()
    assert (stats.guests_live, stats.guests_peak, stats.spawns) == (0, 2, 3)


def test_a_guest_whose_start_fails_gives_its_place_back(host):
    bad = host.load(guest_file("start_trap"))
    host.tenant("a", guests=1)
    for _ in range(3):
        with pytest.raises(sandhost.GuestTrap):
            bad.spawn(tenant="a")
    assert host.tenant("a").stats().guests_live == 0
    assert host.stats().guests_live == 0


def test_a_tenant_starts_no_more_guests_a_second_than_its_quota(host):
    plugin = host.load(guest_file("add"))
    tenant = host.tenant("a", spawns_per_s=20)
    started, begun = 0, time.monotonic()
    while (passed := time.monotonic() - begun) < 0.5:
        try:
            plugin.spawn(tenant="a").close()
            started += 1
        except sandhost.QuotaExceeded as error:
            assert "guests started in a second" in str(error)
            assert 0 < error.retry_after_s <= 0.05 + 1e-6
            time.sleep(0.001)
    assert 20 <= started <= 20 + 20 * (time.monotonic() - begun) + 1
    assert passed >= 0.5
    assert tenant.stats().refusals > 0
    assert host.stats().quota_refusals == tenant.stats().refusals
    assert plugin.call("add", 1, 2, tenant="b") == 3  # another's is its own


def test_a_call_ends_when_its_tenants_cpu_time_is_used_up(host):
    plugin = host.load(guest_file("spin"))
    tenant = host.tenant("a", cpus=0.05)  # 50 ms of the first second
    with plugin.spawn(tenant="a") as guest:
        with pytest.raises(sandhost.QuotaExceeded, match="CPU time") as caught:
            guest.call("spin")
        assert caught.value.retry_after_s > 0
        with pytest.raises(sandhost.QuotaExceeded):
            guest.call("spin")
        with pytest.raises(sandhost.QuotaExceeded):
            plugin.spawn(tenant="a")
    # No more than it had, and what two ticks may add.
    assert 45e6 < tenant.stats().cpu_ns < 50e6 + 20e6


def test_many_short_calls_use_up_a_tenants_cpu_time_as_one_long_one_does(host):
    plugin = host.load(guest_file("bench"))
    tenant = host.tenant("a", cpus=0.02)
    with plugin.spawn(tenant="a") as guest:
        dirty = guest.func("dirty")
        with pytest.raises(sandhost.QuotaExceeded):
            for _ in range(1_000_000):
                dirty(256)
    assert tenant.stats().cpu_ns > 15e6


@pytest.mark.anyio
async def test_cpu_time_on_a_fiber_counts_while_it_runs_and_not_while_it_waits(host):
    @host.function("env", "later")
    async def later(x: int) -> int:
        time.sleep(0.1)  # the host's own time: nobody else's
        return x

    @host.function("env", "now")
    def now(x: int) -> int:
        return x

    plugin = host.load(guest_file("waits"))
    tenant = host.tenant("a", cpus=0.05)
    async with plugin.spawn_async(tenant="a") as guest:
        assert await guest.call_async("wait", 7) == 7
        assert tenant.stats().cpu_ns < 20e6
        with pytest.raises(sandhost.QuotaExceeded):
            await guest.call_async("work", 2_000_000_000)


@pytest.mark.parametrize(
    "quota",
    [
        {"guests": -1},
        {"guests": 1.5},
        {"cpus": 0},
        {"cpus": "2"},
        {"spawns_per_s": float("nan")},
        {"weight": -1},
        {"handles": "many"},
        {"memory_limit": "16 XB"},
    ],
)
def test_quotas_that_cannot_be_meant_are_refused(host, quota):
    with pytest.raises(sandhost.ConfigError):
        host.tenant("a", **quota)
    assert host.tenants() == []


def test_a_tenants_quotas_are_said_once(host):
    tenant = host.tenant("a", guests=3, cpus=0.5)
    assert host.tenant("a") is host.tenant("a", guests=3) is tenant
    with pytest.raises(sandhost.ConfigError, match=r"exists with cpus=0\.5, not 0\.7"):
        host.tenant("a", cpus=0.7)
    assert host.tenants() == [tenant]


def test_quotas_can_be_changed_while_guests_live(host):
    plugin, tenant = host.load(guest_file("add")), host.tenant("a", guests=2, memory_limit="4 MiB")
    with plugin.spawn(tenant="a") as one, plugin.spawn(tenant="a") as two:
        tenant.set_quotas(sandhost.Quotas(guests=1))
        assert tenant.quotas == sandhost.Quotas(guests=1)
        assert host.tenant("a", guests=1) is tenant
        for _ in range(3):
            with pytest.raises(sandhost.QuotaExceeded, match="guests alive at once is 1"):
                plugin.spawn(tenant="a")
        assert (one.call("add", 1, 2), two.call("add", 1, 2)) == (3, 3)
        two.close()
        with pytest.raises(sandhost.QuotaExceeded):
            plugin.spawn(tenant="a")
        tenant.set_quotas(sandhost.Quotas())
        plugin.spawn(tenant="a").close()
    with pytest.raises(sandhost.ConfigError):
        tenant.set_quotas(tenant.quotas._replace(guests=-1))
    assert tenant.quotas == sandhost.Quotas()


def test_a_call_that_runs_ends_when_its_tenant_is_given_little_time(host):
    tenant = host.tenant("a")
    with host.load(guest_file("spin")).spawn(tenant="a") as guest:

        def spin():
            with pytest.raises(sandhost.QuotaExceeded, match="CPU time"):
                guest.call("spin")

        spinning = Background(spin)
        time.sleep(0.02)
        tenant.set_quotas(sandhost.Quotas(cpus=0.01))
        spinning.result()
        tenant.set_quotas(sandhost.Quotas())


def test_the_hosts_memory_for_tenants_holds_where_changed_quotas_say_nothing():
    with sandhost.Host(tenant_memory="1 MiB") as host:
        tenant = host.tenant("a", memory_limit="2 MiB")
        tenant.set_quotas(sandhost.Quotas(guests=5))
        assert tenant.memory_limit == 2**20
        tenant.set_quotas(sandhost.Quotas(memory_limit="3 MiB", weight=2))
        assert (tenant.memory_limit, tenant.weight) == (3 * 2**20, 2)


def test_a_host_that_refuses_takes_no_new_guests_and_keeps_the_old(host):
    plugin = host.load(guest_file("add"))
    with plugin.spawn() as guest:
        lib.sh_host_refuse(host.native, 250_000_000)
        with pytest.raises(sandhost.Overloaded, match="try again in 250 ms") as caught:
            plugin.spawn(tenant="a")
        assert caught.value.retry_after_s == 0.25
        with pytest.raises(sandhost.Overloaded):
            plugin.call("add", 1, 2)
        assert guest.call("add", 1, 2) == 3
        lib.sh_host_refuse(host.native, 0)
    assert plugin.call("add", 1, 2) == 3
    assert host.stats().pressure_refusals == 2
    assert host.tenant("a").stats().refusals == 1


def evict(guest_id: int) -> int:
    """What C says; its error is taken."""
    status = lib.sh_evict(guest_id, ffi.new("sh_reclaim *"))
    if status:
        lib.sh_take_error(ffi.new("sh_error *"))
    return int(status)


def test_an_idle_guest_is_evicted_at_once(host):
    guest = host.load(guest_file("add")).spawn()
    assert evict(guest.id) == lib.SH_OK
    assert evict(guest.id) == lib.SH_CLOSED
    with pytest.raises(sandhost.GuestClosed):
        guest.call("add", 1, 2)
    guest.close()
    assert (host.stats().evictions, host.stats().guests_live) == (1, 0)


def test_the_call_of_an_evicted_guest_says_why_it_ended(host):
    with host.load(guest_file("spin")).spawn() as guest:
        call = Background(guest.call, "spin")
        wait_until(lambda: guest.stats().running)
        assert evict(guest.id) == lib.SH_BUSY
        with pytest.raises(sandhost.GuestEvicted, match="short of memory"):
            call.result()
        assert evict(guest.id) == lib.SH_OK
    assert host.stats().evictions == 1


def test_an_eviction_in_an_inner_call_ends_the_outer_one_too():
    async def later(guest: sandhost.Guest, x: int) -> int:
        async def evict_it() -> None:
            assert evict(guest.id) == lib.SH_BUSY  # it is with the workers

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(evict_it)
            with pytest.raises(sandhost.GuestEvicted):
                await guest.call_async("spin")
        return x

    async def main(host: sandhost.Host) -> None:
        async with load_waiting(host, later).spawn_async() as guest:
            with pytest.raises(sandhost.GuestEvicted):
                await guest.call_async("wait", 1)

    with sandhost.Host(cache=False, workers=1) as host:
        anyio.run(main, host)
        assert (host.stats().evictions, host.stats().guests_live) == (1, 0)


def test_evictions_meet_calls_and_closes_of_other_threads(host):
    plugin = host.load(guest_file("add"))
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            guest = plugin.spawn()
            try:
                for _ in range(20):
                    guest.call("add", 1, 2)
            except (sandhost.GuestClosed, sandhost.GuestEvicted):
                pass
            guest.close()

    churning = [Background(churn) for _ in range(2)]
    evicted = 0
    for _ in range(2000):
        for row in host.guests():
            evicted += evict(row.id) == lib.SH_OK
    stop.set()
    for one in churning:
        one.result()
    assert evicted > 0
    assert host.stats().guests_live == 0
