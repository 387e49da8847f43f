"""Snapshots: forks go on from where a guest was, alone, and give back what they took."""

from __future__ import annotations

import errno
import gc
import random
import threading

import pytest
from helpers import PAGE, Background, balanced, collected, failing, guest_file, run_cleanly

import sandhost
from sandhost import Limits, NativeError, hostcalls


@pytest.fixture
def stateful(host):
    return host.load(guest_file("stateful"))


def everything(guest):
    """What can be seen of a `stateful` guest."""
    functions = []
    for at in range(guest.call("table size")):
        try:
            functions.append(guest.call("call", at))
        except sandhost.GuestTrap as error:
            functions.append(error.code)
    figures = [guest.call(name) for name in ("starts", "size", "i", "l", "d", "v")]
    return figures, functions, guest.memory.read(0, guest.memory.size)


def changed(guest):
    guest.call("store", 100, 42)
    guest.call("grow", 3)
    guest.call("store", 4 * 65536 + 8, 43)
    guest.call("set", -7)
    guest.call("keep", 2)
    guest.call("put back", 0)
    guest.call("clear", 1)
    guest.call("grow table", 2)
    return guest


def test_a_fork_goes_on_where_the_guest_was(stateful):
    with stateful.spawn() as guest:
        snapshot = changed(guest).snapshot()
        with snapshot.spawn() as fork:
            assert everything(fork) == everything(guest)
            assert fork.call("starts") == 1
            assert fork.memory.read(16, 11) == b"active text"


def test_a_snapshot_of_a_fresh_guest_is_a_fresh_guest(stateful):
    with stateful.spawn() as guest, guest.snapshot() as snapshot, snapshot.spawn() as fork:
        assert everything(fork) == everything(guest)


def test_the_guest_goes_on_too_and_neither_sees_the_other(stateful):
    with stateful.spawn() as guest:
        guest.call("store", 100, 1)
        with guest.snapshot() as snapshot:
            guest.call("store", 100, 2)
            guest.call("set", 9)
            with snapshot.spawn() as one, snapshot.spawn() as two:
                one.call("store", 100, 3)
                one.call("set", 10)
                one.call("clear", 2)
                assert (guest.call("load", 100), guest.call("i")) == (2, 9)
                assert (two.call("load", 100), two.call("i"), two.call("call", 2)) == (1, 1, 2)
            with snapshot.spawn() as three:
                assert (three.call("load", 100), three.call("i"), three.call("call", 2)) == (
                    1,
                    1,
                    2,
                )


def test_what_one_fork_wrote_is_gone_for_the_next_under_every_policy(any_host):
    stateful = any_host.load(guest_file("stateful"))
    snapshot = stateful.warm("store", (200, 5))
    for _ in range(20):
        with snapshot.spawn() as fork:
            assert fork.memory.read(196, 12) == b"\0\0\0\0\5\0\0\0\0\0\0\0"
            fork.memory.write(0, b"x" * fork.memory.size)
            fork.call("grow", 2)


def test_forks_that_nobody_used_leave_their_slots_as_they_were(any_host):
    plugin = any_host.load(guest_file("stateful"))
    rng = random.Random(5)
    with plugin.warm("store", (200, 5)) as snapshot:
        for _ in range(300):
            limits = Limits(memory="20 MiB")
            with snapshot.spawn(limits=limits) as fork:
                use = rng.randrange(6)
                if use == 0:
                    fork.memory.write(rng.randrange(100_000), b"host" * 1000)
                elif use == 1:
                    with fork.memory.view(0, 100_000) as view:
                        view[50_000:50_004] = b"view"
                elif use == 2:
                    fork.call("store", rng.randrange(100_000), -1)
                elif use == 3:
                    with fork.snapshot() as again, again.spawn():
                        pass
            with snapshot.spawn() as fork:
                expected = bytearray(2 * 65536)
                expected[16:27], expected[64], expected[200] = b"active text", 1, 5
                assert fork.memory.read(0, 2 * 65536) == expected
        warm = any_host.stats().warm_bytes
        for _ in range(20):
            snapshot.spawn().close()
        assert any_host.stats().warm_bytes <= warm


@pytest.mark.parametrize("segment", ["text", "fill table"])
def test_a_dropped_segment_stays_dropped(stateful, segment):
    drop = {"text": "drop text", "fill table": "drop spare"}[segment]
    with stateful.spawn() as guest:
        before = guest.snapshot()
        guest.call(drop)
        after = guest.snapshot()
    with before.spawn() as fork:
        fork.call(segment, 0)
    with after.spawn() as fork, pytest.raises(sandhost.GuestTrap, match="out of bounds"):
        fork.call(segment, 0)
    with after.spawn() as fork, fork.snapshot() as again, again.spawn() as third:
        with pytest.raises(sandhost.GuestTrap, match="out of bounds"):
            third.call(segment, 0)


def test_taking_a_snapshot_changes_nothing(stateful):
    with stateful.spawn() as guest:
        changed(guest)
        before = everything(guest)
        with guest.snapshot(), guest.snapshot():
            assert everything(guest) == before
            guest.call("text", 300)
            guest.call("fill table", 3)


def test_segments_that_cannot_be_probed_are_refused_by_name(host):
    plugin = host.load(
        b"""(module (memory 0 1) (data $d "x")
        (func (export "use") (memory.init $d (i32.const 0) (i32.const 0) (i32.const 0))))"""
    )
    with plugin.spawn() as guest, pytest.raises(sandhost.ConfigError, match="data segment 0"):
        guest.snapshot()


def test_snapshots_of_snapshots_share_what_did_not_change(host):
    plugin = host.load(
        b"""(module (memory (export "memory") 64)
        (func (export "fill") (param i32 i32)
            (memory.fill (i32.const 0) (local.get 0) (local.get 1))))"""
    )
    megabyte = 1 << 20
    chain = [plugin.warm("fill", (7, megabyte))]
    assert megabyte <= host.stats().image_bytes < 1.1 * megabyte
    for depth in range(1, 12):
        with chain[-1].spawn() as fork:
            fork.memory.write(depth * 20 * PAGE, bytes([depth]))
            chain.append(fork.snapshot())
    assert host.stats().image_bytes < 2 * megabyte
    for depth, snapshot in enumerate(chain):
        with snapshot.spawn() as fork:
            expected = bytearray(b"\7" * megabyte)
            for below in range(1, depth + 1):
                expected[below * 20 * PAGE] = below
            assert fork.memory.read(0, megabyte) == expected
    for snapshot in chain:
        snapshot.close()
    collected()
    host.trim()
    assert host.stats().image_bytes == 0


def test_a_snapshot_of_an_untouched_fork_is_the_same_image(stateful, host):
    with stateful.warm("store", (70_000, 1)) as snapshot:
        before = host.stats()
        with snapshot.spawn() as fork, fork.snapshot() as again, again.spawn() as twin:
            assert host.stats().images == before.images
            assert host.stats().image_bytes == before.image_bytes
            assert twin.call("load", 70_000) == 1


def test_zeros_cost_nothing(host):
    plugin = host.load(b'(module (memory (export "memory") 4096))')
    with plugin.spawn(limits=Limits(memory="300 MiB")) as guest:
        guest.memory.write(200 << 20, b"far")
        snapshot = guest.snapshot()
    assert host.stats().image_bytes == PAGE
    with snapshot.spawn(limits=Limits(memory="300 MiB")) as fork:
        assert fork.memory.read(200 << 20, 3) == b"far"
        assert snapshot.memory_bytes == fork.memory.size == 256 << 20


def test_memory_that_went_back_to_zero_is_zero(host):
    plugin = host.load(b'(module (memory (export "memory") 8) (data (i32.const 0) "initial"))')
    with plugin.spawn() as guest:
        guest.memory.write(0, bytes(PAGE))
        with guest.snapshot() as snapshot, snapshot.spawn() as fork:
            assert fork.memory.read(0, PAGE) == bytes(PAGE)


# ---- lifetimes and limits ----


def test_forks_outlive_their_snapshot_and_their_plugin_object(host):
    snapshot = host.load(guest_file("stateful")).warm("store", (8, 8))
    fork = snapshot.spawn()
    snapshot.close()
    snapshot.close()
    assert snapshot.closed
    del snapshot
    gc.collect()
    assert fork.call("load", 8) == 8
    with fork.snapshot() as again, again.spawn() as twin:
        assert twin.call("load", 8) == 8
    fork.close()


def test_a_closed_snapshot_and_a_closed_guest_say_so(stateful, tmp_path):
    snapshot = stateful.warm()
    guest = stateful.spawn()
    guest.close()
    snapshot.close()
    for use in (
        snapshot.spawn,
        guest.snapshot,
        lambda: snapshot.save(tmp_path / "x"),
        lambda: snapshot.memory_bytes,
    ):
        with pytest.raises(sandhost.GuestClosed):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_closed_host_spawns_no_forks():
    with sandhost.Host(cache=False, max_guests=8) as host:
        snapshot = host.load(guest_file("stateful")).warm()
    with pytest.raises(sandhost.GuestClosed):
        snapshot.spawn()
    snapshot.close()


def test_a_guest_in_a_call_is_refused(host):
    seen = []

    @host.function("env", "now")
    def now(guest: sandhost.Guest) -> None:
        try:
            guest.snapshot()
        except sandhost.GuestBusy as error:
            seen.append(str(error))

    plugin = host.load(
        b'(module (import "env" "now" (func $now)) (func (export "go") (call $now)))'
    )
    with plugin.spawn() as guest:
        guest.call("go")
    assert "between calls" in seen[0]


def test_a_guest_that_another_thread_is_in_is_refused(host):
    spin = host.load(guest_file("spin"))
    with spin.spawn(limits=Limits(deadline=5.0)) as guest:
        running = Background(guest.call, next(iter(spin.functions)))
        while not guest.stats().running:
            pass
        with pytest.raises(sandhost.GuestBusy):
            guest.snapshot()
        guest.cancel()
        with pytest.raises(sandhost.GuestCancelled):
            running.result()


def test_limits_hold_for_forks(stateful):
    with stateful.spawn() as guest:
        snapshot = changed(guest).snapshot()
    with pytest.raises(sandhost.OutOfMemory):
        snapshot.spawn(limits=Limits(memory=4 * 65536))
    with pytest.raises(sandhost.LimitExceeded, match="table"):
        snapshot.spawn(limits=Limits(table_elements=7))
    with snapshot.spawn(limits=Limits(memory=5 * 65536, table_elements=8)) as fork:
        assert fork.call("grow", 1) == -1
        assert fork.call("grow table", 1) == -1


def test_forks_are_paid_by_their_tenants(stateful, host):
    snapshot = stateful.warm()
    with snapshot.spawn(tenant="a"), snapshot.spawn(tenant="b"), snapshot.spawn(tenant="b"):
        assert host.tenant("b").memory_bytes == 2 * host.tenant("a").memory_bytes == 4 * 65536


def test_hundreds_of_forks_at_once_are_apart(stateful, host):
    snapshot = stateful.warm("store", (1000, 1))
    forks = [snapshot.spawn() for _ in range(200)]
    for number, fork in enumerate(forks):
        fork.call("store", 1000, number)
    assert [fork.call("load", 1000) for fork in forks] == list(range(200))
    snapshot.close()
    for fork in forks:
        fork.close()


def test_threads_may_fork_from_one_snapshot(stateful):
    with stateful.spawn() as guest:
        snapshot = changed(guest).snapshot()
    barrier = threading.Barrier(4)

    def churn(number):
        barrier.wait()
        for _ in range(300):
            with snapshot.spawn() as fork:
                assert (fork.call("load", 100), fork.call("i"), fork.call("call", 0)) == (42, -7, 2)
                fork.call("store", 100, number)
        return True

    threads = [Background(churn, number) for number in range(4)]
    assert all(thread.result() for thread in threads)


# ---- reseeding ----

SEEDED = b"""(module (memory (export "memory") 1) (global $seed (mut i64) (i64.const 0))
    (func (export "reseed") (param i64) (global.set $seed (local.get 0)))
    (func (export "mix") (param i32 i64) (result i32)
        (global.set $seed (i64.xor (local.get 1) (i64.extend_i32_u (local.get 0)))) (i32.const 9))
    (func (export "note") (global.set $seed (i64.const 7)))
    (func (export "fail") (param i32) (unreachable))
    (func (export "real") (param f32))
    (func (export "seed") (result i64) (global.get $seed)))"""


@pytest.mark.parametrize("name", ["reseed", "mix"])
def test_forks_are_reseeded(host, name):
    plugin = host.load(SEEDED)
    with plugin.warm(reseed=name) as snapshot:
        seeds = set()
        for _ in range(5):
            with snapshot.spawn() as fork:
                seeds.add(fork.call("seed"))
        assert len(seeds) == 5


def test_a_reseed_function_may_take_nothing(host):
    with host.load(SEEDED).warm(reseed="note") as snapshot, snapshot.spawn() as fork:
        assert fork.call("seed") == 7


@pytest.mark.parametrize("name", ["real", "missing", "memory"])
def test_what_cannot_reseed_is_refused_at_once(host, name):
    with pytest.raises(sandhost.ConfigError, match="reseed"):
        host.load(SEEDED).warm(reseed=name)


def test_a_fork_whose_reseeding_fails_is_closed(host):
    snapshot = host.load(SEEDED).warm(reseed="fail")
    for _ in range(3):
        with pytest.raises(sandhost.GuestTrap):
            snapshot.spawn()
    assert host.stats().guests_live == 0


# ---- host functions and WASI ----


def test_host_functions_find_the_fork(host):
    seen = []

    @host.function("env", "me")
    def me(guest: sandhost.Guest, value: int) -> None:
        seen.append((guest, value))

    plugin = host.load(
        b"""(module (import "env" "me" (func $me (param i32))) (global $n (mut i32) (i32.const 0))
        (func (export "go") (param i32)
            (global.set $n (i32.add (global.get $n) (local.get 0))) (call $me (global.get $n))))"""
    )
    with plugin.warm("go", (5,)) as snapshot, snapshot.spawn() as one, snapshot.spawn() as two:
        one.call("go", 1)
        two.call("go", 2)
        assert seen[1:] == [(one, 6), (two, 7)]
    assert not hostcalls.bindings


def test_references_to_imported_functions_are_kept(host):
    host.function("env", "inc", "(i32) -> i32")(lambda n: n + 1)
    plugin = host.load(
        b"""(module (import "env" "inc" (func $inc (param i32) (result i32))) (table 2 funcref)
        (elem declare func $inc)
        (func (export "set") (table.set (i32.const 1) (ref.func $inc)))
        (func (export "call") (param i32) (result i32)
            (call_indirect (param i32) (result i32) (local.get 0) (i32.const 1))))"""
    )
    with plugin.warm("set") as snapshot, snapshot.spawn() as fork:
        assert fork.call("call", 41) == 42


# ---- what fails ----

FAULTS = [("MEMFD", 0), ("WRITE", 0), ("WRITE", 1), ("SEAL", 0), ("MMAP", 0), ("MMAP", 1)]


@pytest.mark.parametrize(("call", "skip"), FAULTS)
def test_a_snapshot_that_cannot_be_taken_leaves_nothing(stateful, host, call, skip):
    with stateful.spawn() as guest:
        guest.call("store", 100_000, 5)
        before = host.stats()
        with failing(call, skip=skip, error=errno.ENOMEM), pytest.raises(NativeError):
            guest.snapshot()
        assert host.stats().images == before.images
        assert host.stats().image_bytes == before.image_bytes
        with guest.snapshot() as snapshot, snapshot.spawn() as fork:
            assert fork.call("load", 100_000) == 5


@pytest.mark.parametrize("skip", range(4))
def test_a_fork_that_cannot_be_mapped_leaves_nothing(stateful, host, skip):
    with stateful.spawn() as guest:
        for at in (0, 40_000, 120_000):
            guest.call("store", at, 5)
        snapshot = guest.snapshot()
    for _ in range(5):
        with failing("MMAP", skip=skip):
            try:
                with snapshot.spawn() as fork:
                    assert fork.call("load", 120_000) == 5
            except NativeError:
                pass
    with snapshot.spawn() as fork:
        assert fork.call("load", 120_000) == 5
    snapshot.close()
    collected()
    balanced(host)


@pytest.mark.parametrize("call", ["PAGEMAP_SCAN", "PAGEMAP_READ"])
def test_without_word_from_the_kernel_every_page_is_read(stateful, call):
    with stateful.spawn() as guest:
        guest.call("store", 100_000, 5)
        with failing("PAGEMAP_SCAN"), failing(call):
            snapshot = guest.snapshot()
        with snapshot.spawn() as fork:
            assert everything(fork) == everything(guest)


def test_the_child_of_a_fork_has_no_snapshots():
    run_cleanly(
        """
        import os
        host = sandhost.Host(cache=False, max_guests=8)
        snapshot = host.load(guest_file("stateful")).warm()
        child = os.fork()
        if not child:
            status = 1
            try:
                snapshot.spawn()
            except sandhost.SandhostError as error:
                status = 0 if "fork" in str(error) else 2
            finally:
                snapshot.close()
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        with snapshot.spawn() as fork:
            assert fork.call("starts") == 1
        snapshot.close()
        host.close()
        """
    )
