"""Statistics: every figure is what was done, and none of them stays behind."""

from __future__ import annotations

import pytest
from helpers import DEADLINE, PAGE, WASM_PAGE, Background, guest_file, wait_until

import sandhost


def test_a_hosts_counters_are_what_was_done(host):
    add, trap = host.load(guest_file("add")), host.load(guest_file("unreachable"))
    for _ in range(3):
        with add.spawn() as guest:
            for k in range(5):
                guest.call("add", k, k)
    with trap.spawn() as guest:
        for _ in range(2):
            with pytest.raises(sandhost.GuestTrap):
                guest.call("trap")
    stats = host.stats()
    assert (stats.spawns, stats.calls, stats.traps) == (4, 17, 2)
    assert (stats.guests_live, stats.guests_peak, stats.spawn_failures) == (0, 1, 0)
    assert add.stats()[:5] == (0, 3, 15, 0, 0)
    assert (trap.stats().calls, trap.stats().traps) == (2, 2)


def test_gauges_follow_guests_up_and_down(host):
    plugin = host.load(guest_file("no_max_memory"))
    guests = []
    for count in range(1, 6):
        guests.append(plugin.spawn())
        stats = host.stats()
        assert (stats.guests_live, stats.regions_live) == (count, count)
        assert stats.committed_bytes == count * WASM_PAGE
        assert plugin.stats().guests_live == count
    guests[0].call("grow", 3)
    assert host.stats().committed_bytes == 8 * WASM_PAGE
    for guest in guests:
        guest.close()
    stats = host.stats()
    assert (stats.guests_live, stats.guests_peak, stats.committed_bytes) == (0, 5, 0)


def test_each_limit_that_was_met_is_counted(host):
    limits = sandhost.Limits(deadline=DEADLINE, memory="1 MiB")
    with host.load(guest_file("spin")).spawn(limits=limits) as guest:
        with pytest.raises(sandhost.DeadlineExceeded):
            guest.call("spin")
    with host.load(guest_file("spin")).spawn() as guest:
        call = Background(guest.call, "spin")
        wait_until(guest.cancel)
        with pytest.raises(sandhost.GuestCancelled):
            call.result()
    with pytest.raises(sandhost.OutOfMemory):
        host.load(guest_file("bss")).spawn(limits=limits)
    stats = host.stats()
    assert (stats.deadlines, stats.cancels) == (1, 1)
    assert stats.memory_refusals == stats.spawn_failures == 1


def test_a_guests_own_figures(host):
    host.function("env", "nop", "()")(lambda: None)
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    with host.load(guest_file("hostcall")).spawn() as guest:
        before = guest.stats()
        assert (before.calls, before.host_calls, before.running) == (0, 0, False)
        guest.call("call_inc", 7)
        after = guest.stats()
        assert (after.calls, after.host_calls) == (1, 7)
        assert after.age_ns > before.age_ns
    with host.load(guest_file("no_max_memory")).spawn() as guest:
        guest.call("grow", 2)
        assert guest.stats().memory_bytes == guest.stats().memory_peak_bytes == 3 * WASM_PAGE


def test_running_is_seen_from_another_thread(host):
    with host.load(guest_file("spin")).spawn() as guest:
        call = Background(guest.call, "spin")
        wait_until(lambda: guest.stats().running)
        wait_until(guest.cancel)
        with pytest.raises(sandhost.GuestCancelled):
            call.result()
        assert not guest.stats().running


def test_images_are_counted_while_a_plugin_needs_them(host):
    before = host.stats()
    plugin = host.load(guest_file("bench"))
    stats = host.stats()
    assert stats.images == before.images + 1
    assert plugin.stats().image_bytes == 65536
    plugin.spawn().close()
    del plugin
    assert host.stats().images == before.images


def test_latencies_count_every_operation(host):
    plugin = host.load(guest_file("add"))
    for _ in range(10):
        with plugin.spawn() as guest:
            guest.call("add", 1, 2)
            guest.call("add", 1, 2)
    for operation, count in (("spawn", 10), ("call", 20), ("close", 10)):
        latency = host.latency(operation)
        assert latency.total == count == sum(n for _, n in latency.buckets)
        assert 0 < latency.percentile(50) <= latency.percentile(99) <= latency.max_ns
        assert [value for value, _ in latency.buckets] == sorted(v for v, _ in latency.buckets)
    with pytest.raises(sandhost.ConfigError):
        host.latency("nope")


def test_a_percentile_of_nothing_is_zero(host):
    assert host.latency("spawn").percentile(99) == 0


def test_slots_are_found_again_by_what_they_held(host):
    plugin, other = host.load(guest_file("bench")), host.load(guest_file("secrets"))
    plugin.spawn(tenant="a").close()
    assert host.stats().slots_cold == 1
    plugin.spawn(tenant="a").close()
    assert host.stats().slots_same == 1
    other.spawn(tenant="a").close()
    stats = host.stats()
    assert stats.slots_same + stats.slots_cold + stats.slots_other == stats.spawns == 3


def test_each_node_tells_what_its_slots_hold(host):
    plugin = host.load(guest_file("bench"))
    before = host.node_stats()
    assert sum(node.slots_live for node in before) == 0
    with plugin.spawn() as guest:
        guest.call("dirty", 10)
        nodes = host.node_stats()
        stats = host.stats()
        assert len(nodes) == stats.nodes
        assert sum(node.slots_live for node in nodes) == stats.regions_live == 1
        assert sum(node.committed_bytes for node in nodes) == stats.committed_bytes
        assert all(node.cpus > 0 for node in nodes) or len(nodes) > 1
        if nodes[0].resident_bytes is not None:  # Linux before 6.7 does not tell
            assert sum(node.resident_bytes for node in nodes) == 10 * PAGE
        if len(nodes) == 1 and nodes[0].local_bytes is not None:
            assert nodes[0].local_bytes == nodes[0].resident_bytes
    assert sum(node.warm_bytes for node in host.node_stats()) == host.stats().warm_bytes > 0
    host.close()
    with pytest.raises(sandhost.GuestClosed):
        host.node_stats()
