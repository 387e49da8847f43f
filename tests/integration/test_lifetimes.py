"""Who outlives whom: guests, views, hosts, tenants, when threads and processes come in between."""

from __future__ import annotations

import gc
import sys
import threading
from functools import partial

import pytest
from helpers import Background, run_cleanly

import sandhost
from sandhost.memory import GuestMemory

PLUGIN = b"""(module (memory (export "memory") 1) (memory 1)
  (func (export "store") (i32.store (i32.const 0) (i32.const 0x01020304))))"""


@pytest.fixture
def plugin(host):
    return host.load(PLUGIN)


@pytest.fixture
def hasty_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*functions):
    """Run functions in threads that start at once; return what each returned or raised."""
    barrier = threading.Barrier(len(functions))

    def run(function):
        barrier.wait()
        try:
            return function()
        except Exception as error:
            return error

    threads = [Background(run, function) for function in functions]
    return [thread.result() for thread in threads]


# ---- views and closes in several threads ----


def test_a_view_that_is_being_taken_keeps_the_guest_alive(plugin, monkeypatch):
    """A close between the check of the bounds and the making of the view must not succeed."""
    guest = plugin.spawn()
    memory = guest.memory
    bounds = GuestMemory._start
    closing = []

    def slow_bounds(self, address, length):
        start = bounds(self, address, length)
        closing.append(together(guest.close)[0])
        return start

    monkeypatch.setattr(GuestMemory, "_start", slow_bounds)
    view = memory.view(0, 16)
    monkeypatch.undo()
    assert isinstance(closing[0], sandhost.GuestBusy)
    view[:] = b"0123456789abcdef"
    assert memory.read(0, 16) == b"0123456789abcdef"
    with pytest.raises(sandhost.GuestBusy):
        guest.close()
    view.release()
    guest.close()


def test_a_view_asked_for_after_the_close_is_refused_and_holds_nothing(plugin):
    guest = plugin.spawn()
    memory = guest.memory
    guest.close()
    for _ in range(2):
        with pytest.raises(sandhost.GuestClosed):
            memory.view(0, 1)
    with pytest.raises(sandhost.GuestClosed):
        memory.read(0, 1)


def test_a_view_out_of_bounds_does_not_keep_the_guest_from_closing(plugin):
    with plugin.spawn() as guest:
        with pytest.raises(sandhost.OutOfBounds):
            guest.memory.view(65536, 1)


def test_threads_that_map_a_guests_memory_at_once_pin_it_once(plugin, hasty_threads):
    for _ in range(200):
        guest = plugin.spawn()
        memory_at = guest.memory_at
        memories = together(partial(memory_at, 0), partial(memory_at, 0), partial(memory_at, 1))
        assert memories[0] is memories[1]
        guest.close()


def test_threads_that_close_a_guest_at_once_end_it_once(plugin, hasty_threads):
    for _ in range(200):
        guest = plugin.spawn()
        _ = guest.memory
        outcomes = together(guest.close, guest.close, guest.close)
        assert not [
            o for o in outcomes if not isinstance(o, (sandhost.Reclaim, sandhost.GuestBusy))
        ]
        guest.close()
        assert guest.closed


def test_threads_that_use_and_close_a_guest_at_once_see_one_or_the_other(plugin, hasty_threads):
    def view(guest):
        with guest.memory.view(0, 4) as window:
            return bytes(window)

    def size(guest):
        return guest.memory.size

    for _ in range(300):
        guest = plugin.spawn()
        closed, *seen = together(
            guest.close, partial(view, guest), partial(size, guest), guest.stats
        )
        if isinstance(closed, Exception):
            assert isinstance(closed, sandhost.GuestBusy)
        for outcome in seen:
            if isinstance(outcome, Exception):
                assert isinstance(outcome, sandhost.GuestClosed), outcome
        gc.collect()
        guest.close()


def test_a_host_that_closes_while_threads_spawn_leaves_no_guest(hasty_threads):
    for _ in range(20):
        host = sandhost.Host(cache=False, max_guests=1024)
        plugin = host.load(PLUGIN)

        def spawn(plugin=plugin):
            guests = []
            try:
                guests.extend(plugin.spawn() for _ in range(200))
            except sandhost.GuestClosed:
                pass
            return guests

        *spawned, closed = together(spawn, spawn, host.close)
        assert closed is None
        stats = host.stats()
        assert (stats.guests_live, stats.regions_live) == (0, 0)
        for guest in spawned[0] + spawned[1]:
            with pytest.raises(sandhost.GuestClosed):
                guest.call("store")
            guest.close()


# ---- tenants and hosts ----


def test_a_tenant_of_another_host_is_refused(plugin):
    with sandhost.Host(cache=False) as other:
        tenant = other.tenant("acme")
        with pytest.raises(sandhost.ConfigError, match="another host"):
            plugin.spawn(tenant=tenant)
        assert tenant.memory_bytes == 0


def test_a_tenant_can_be_asked_after_its_host_is_gone():
    host = sandhost.Host(cache=False)
    tenant = host.tenant("acme")
    with host.load(PLUGIN).spawn(tenant=tenant):
        assert tenant.memory_bytes == 2 * 65536
    host.close()
    del host
    gc.collect()
    assert tenant.memory_bytes == 0
    assert tenant.memory_peak_bytes == 2 * 65536


def test_a_guest_keeps_its_host_alive(plugin):
    host = sandhost.Host(cache=False)
    guest = host.load(PLUGIN).spawn()
    del host
    gc.collect()
    guest.call("store")
    assert guest.memory.read(0, 4) == bytes([4, 3, 2, 1])
    guest.close()


# ---- exceptions and empty memories ----


def test_a_gc_heap_is_never_taken_for_a_memory(host):
    """wasmtime asks for both in the same way when the memory starts empty; nothing may run then."""
    ran = []
    host.function("env", "ran", "() -> ()")(lambda: ran.append(1))
    plugin = host.load(
        b"""(module (import "env" "ran" (func $ran)) (memory (export "memory") 0 10) (tag $t)
          (func $start (call $ran)) (start $start)
          (func (export "throw") (block $caught (try_table (catch $t $caught) (throw $t)))))"""
    )
    with pytest.raises(sandhost.SandhostError, match="starts empty is not supported"):
        plugin.spawn()
    assert ran == []


# ---- processes ----


def test_a_child_forked_after_the_last_host_is_told_and_does_not_hang():
    out = run_cleanly(
        """
        import gc, os
        def use():
            with sandhost.Host(cache=False) as host:
                with host.load(guest_file("add")).spawn() as guest:
                    return guest.call("add", 2, 3)
        assert use() == 5
        gc.collect()
        child = os.fork()
        if child == 0:
            try:
                use()
            except sandhost.SandhostError as error:
                os.write(1, str(error).encode())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert use() == 5
        """
    )
    assert "make hosts after the fork" in out


@pytest.mark.parametrize("policy", ["immediate", "warm", "lazy"])
def test_a_process_that_locks_its_memory_loses_no_slot(policy):
    out = run_cleanly(
        f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        host = sandhost.Host(cache=False, reclaim="{policy}", warm_guest=0, max_guests=4)
        plugin = host.load(guest_file("bss"))
        MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
        if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
            print("not permitted")
        else:
            for _ in range(8):
                with plugin.spawn() as guest:
                    assert guest.memory.read(0, 6) != b"secret"
                    guest.memory.write(0, b"secret" * 1000)
            assert host.stats().quarantined_slots == 0
        host.close()
        """
    )
    if "not permitted" in out:
        pytest.skip("mlockall is not permitted")


def test_a_spawn_at_the_end_of_pythons_stack_leaves_no_guest(host):
    plugin = host.load(PLUGIN)

    def spawn_below(depth):
        return spawn_below(depth - 1) if depth else plugin.spawn()

    limit = sys.getrecursionlimit()
    spawned = 0
    for depth in range(limit - 200, limit):
        try:
            guest = spawn_below(depth)
        except RecursionError:
            continue
        guest.close()
        spawned += 1
    assert 0 < spawned < 200
    assert host.stats().guests_live == 0
