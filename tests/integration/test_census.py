"""The list of live guests: each of them once, with what it holds, while others come and go."""

from __future__ import annotations

import threading

import pytest
from helpers import WASM_PAGE, Background, guest_file, wait_until

import sandhost


def test_each_live_guest_has_a_row(host):
    add, memory = host.load(guest_file("add"), name="add"), host.load(guest_file("no_max_memory"))
    assert host.guests() == []
    with add.spawn() as first, memory.spawn(tenant="acme") as second:
        first.call("add", 1, 2)
        second.call("grow", 2)
        rows = {row.id: row for row in host.guests()}
        assert set(rows) == {first.id, second.id}
        one, other = rows[first.id], rows[second.id]
        assert (one.plugin, one.tenant, one.calls, one.doing) == ("add", None, 1, "idle")
        assert (other.tenant, other.memory_bytes) == ("acme", 3 * WASM_PAGE)
        assert other.memory_peak_bytes == other.memory_bytes
        assert one.age_ns >= other.age_ns > 0
        assert (other.handles, other.handle_bytes) == (0, 0)
    assert host.guests() == []


def test_more_guests_than_one_reading_has_room_for(host):
    plugin = host.load(guest_file("add"))
    guests = [plugin.spawn() for _ in range(300)]
    assert sorted(row.id for row in host.guests()) == sorted(guest.id for guest in guests)
    for guest in guests[::2]:
        guest.close()
    assert sorted(row.id for row in host.guests()) == sorted(guest.id for guest in guests[1::2])
    for guest in guests:
        guest.close()


def test_another_hosts_guests_are_not_listed(host):
    with sandhost.Host(cache=False) as other:
        with other.load(guest_file("add")).spawn() as guest:
            assert host.guests() == []
            assert [row.id for row in other.guests()] == [guest.id]


def test_a_guest_in_a_call_is_listed_as_running(host):
    with host.load(guest_file("spin")).spawn() as guest:
        call = Background(pytest.raises, sandhost.GuestCancelled, guest.call, "spin")
        wait_until(lambda: host.guests()[0].doing == "running")
        guest.cancel()
        call.result()
        assert host.guests()[0].doing == "idle"


@pytest.mark.anyio
async def test_a_guest_whose_call_waits_is_listed_as_waiting(host):
    seen = []

    @host.function("env", "later")
    async def later(x: int) -> int:
        seen.extend(host.guests())
        return x

    @host.function("env", "now")
    def now(x: int) -> int:
        return x

    with host.load(guest_file("waits")).spawn() as guest:
        await guest.call_async("wait", 1)
    assert [row.doing for row in seen] == ["waiting"]


def test_listing_beside_spawns_that_fail_and_guests_that_end(host):
    """Under a sanitizer this is where a row of a half-made guest would be read after its end."""
    good, bad = host.load(guest_file("add")), host.load(guest_file("start_trap"))
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            good.spawn(tenant="a").close()
            with pytest.raises(sandhost.GuestTrap):
                bad.spawn()

    churning = [Background(churn) for _ in range(2)]
    for _ in range(300):
        for row in host.guests():
            assert row.tenant in {"a", None}
    stop.set()
    for one in churning:
        one.result()
