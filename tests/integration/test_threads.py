"""Threads: a guest is one thread's at a time, and may be handed on; everything else is shared."""

from __future__ import annotations

import threading

import pytest
from helpers import PATIENCE, Background, guest_file, wait_until

import sandhost


def test_a_second_thread_that_enters_a_guest_is_told_it_is_busy(host):
    with host.load(guest_file("spin")).spawn() as guest:
        guest.memory.write(0, b"x")
        call = Background(guest.call, "spin")
        wait_until(lambda: guest.stats().running)
        for _ in range(3):
            with pytest.raises(sandhost.GuestBusy, match="another thread"):
                guest.call("spin")
            with pytest.raises(sandhost.GuestBusy, match=r"cancel\(\)"):
                guest.close()
        assert guest.memory.read(0, 1) == b"x", "its memory may be read meanwhile"
        wait_until(guest.cancel)
        with pytest.raises(sandhost.GuestCancelled):
            call.result()
        guest.memory.read(0, 1)


def test_a_second_thread_that_enters_during_a_host_function_is_told_it_is_busy(host):
    inside, go_on = threading.Event(), threading.Event()

    def nop(guest: sandhost.Guest) -> None:
        inside.set()
        assert go_on.wait(PATIENCE)
        assert guest.call("call_inc", 5) == 5, "the same thread may enter again"

    host.function("env", "nop")(nop)
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    with host.load(guest_file("hostcall")).spawn() as guest:
        call = Background(guest.call, "call_nop", 1)
        assert inside.wait(PATIENCE)
        with pytest.raises(sandhost.GuestBusy):
            guest.call("call_inc", 1)
        with pytest.raises(sandhost.GuestBusy):
            guest.close()
        go_on.set()
        call.result()


def test_a_guest_is_handed_from_thread_to_thread(host):
    guest = host.load(guest_file("secrets")).spawn()
    for number in range(20):
        assert Background(guest.call, "write", number).result() is None
        assert Background(guest.call, "scan", number).result() == 0
    Background(guest.close).result()
    assert guest.closed


def test_exactly_one_of_many_threads_gets_in(host):
    with host.load(guest_file("spin")).spawn(limits=sandhost.Limits(deadline=0.3)) as guest:
        start = threading.Barrier(8)

        def work():
            start.wait()
            try:
                guest.call("spin")
            except sandhost.SandhostError as error:
                return type(error)

        outcomes = [worker.result() for worker in [Background(work) for _ in range(8)]]
    assert sorted(o.__name__ for o in outcomes) == ["DeadlineExceeded"] + ["GuestBusy"] * 7


def test_threads_spawn_from_one_plugin_at_once(host):
    plugin = host.load(guest_file("bench"))
    start = threading.Barrier(6)

    def work(number):
        start.wait()
        for _ in range(100):
            with plugin.spawn(tenant=str(number)) as guest:
                assert guest.call("add", number, 1) == number + 1
                guest.call("dirty", number)

    for worker in [Background(work, n) for n in range(6)]:
        worker.result()
    assert plugin.stats().spawns == 600


def test_a_thread_that_ends_leaves_its_guests_usable(host):
    guests = Background(lambda: [host.load(guest_file("add")).spawn() for _ in range(3)]).result()
    for guest in guests:
        assert guest.call("add", 2, 2) == 4
        guest.close()


def test_guests_of_several_hosts_run_side_by_side():
    hosts = [sandhost.Host(cache=False, max_guests=8) for _ in range(4)]
    guests = [h.load(guest_file("secrets")).spawn() for h in hosts]
    for worker in [Background(g.call, "write", k) for k, g in enumerate(guests)]:
        worker.result()
    hosts[0].close()
    for number, guest in list(enumerate(guests))[1:]:
        assert guest.call("scan", number) == 0
    for host, guest in zip(hosts, guests):
        guest.close()
        host.close()


def test_a_host_may_be_closed_while_threads_spawn_and_call():
    for _ in range(5):
        host = sandhost.Host(cache=False, max_guests=64)
        plugin = host.load(guest_file("secrets"))
        start = threading.Barrier(5)

        def work(plugin=plugin, start=start):
            start.wait()
            try:
                while True:
                    with plugin.spawn() as guest:
                        guest.memory.write(0, b"x")
                        guest.call("write", 1)
            except (sandhost.GuestClosed, sandhost.GuestCancelled, sandhost.GuestBusy) as error:
                return type(error)

        workers = [Background(work) for _ in range(4)]
        start.wait()
        wait_until(lambda host=host: host.stats().spawns > 20)
        for _ in range(100):
            try:
                host.close()
                break
            except sandhost.GuestBusy:
                continue
        for worker in workers:
            worker.result()
        host.close()
        assert host.stats().guests_live == host.stats().regions_live == 0
