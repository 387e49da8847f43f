"""Promises 3 and 4, and what is left when the operating system refuses: figures are the kernel's."""

from __future__ import annotations

import errno

import pytest
from helpers import (
    PAGE,
    POLICIES,
    balanced,
    collected,
    failing,
    guest_file,
    open_files,
    private_bytes,
    rss_bytes,
    run_cleanly,
    wait_until,
)

import sandhost

MIB = 2**20
NOISE = MIB  # of everything else in this process


def host_with(policy: str, **options) -> sandhost.Host:
    return sandhost.Host(cache=False, max_guests=64, reclaim=policy, **options)


# ---- what comes back ----


@pytest.mark.parametrize("dirtied", [0, PAGE, 64 * PAGE, 5 * MIB, 16 * MIB])
def test_immediate_gives_back_what_was_dirtied_and_says_how_much(dirtied):
    with host_with("immediate") as host:
        plugin = host.load(guest_file("bss"))
        for _ in range(3):
            guest = plugin.spawn()
            guest.call("fill", 3 * PAGE if dirtied < 16 * MIB else 0, dirtied, 7)
            before = private_bytes()
            reclaim = guest.close()
            came_back = before - private_bytes()
            assert reclaim == sandhost.Reclaim(
                dirtied, dirtied // PAGE, reclaim.ns, "immediate", 0, 0
            )
            assert abs(came_back - dirtied) < NOISE
            assert reclaim.ns > 0
        balanced(host)


def test_pages_that_were_only_read_are_not_counted(any_host):
    plugin = any_host.load(guest_file("bss"))
    guest = plugin.spawn()
    assert guest.memory.read(0, 16 * MIB) == bytes(16 * MIB)
    reclaim = guest.close()
    assert (reclaim.bytes, reclaim.kept_bytes, reclaim.deferred_bytes) == (0, 0, 0)


def test_dirtied_initial_data_counts_page_by_page():
    with host_with("immediate") as host:
        plugin = host.load(guest_file("bench"))
        for count in (0, 1, 7, 16):
            guest = plugin.spawn()
            guest.call("dirty_data", count)
            assert guest.close().pages == count
        for count in (1, 100, 256):
            guest = plugin.spawn()
            guest.call("dirty", count)
            assert guest.close().pages == count


def test_grown_pages_come_back_too():
    with host_with("immediate") as host:
        guest = host.load(guest_file("secrets")).spawn()
        guest.call("grow", 60)
        guest.call("write", 1)
        assert guest.close().bytes == 64 * 65536


def test_many_guests_come_back_whole():
    with host_with("immediate") as host:
        plugin = host.load(guest_file("bss"))
        before = rss_bytes()
        guests = [plugin.spawn() for _ in range(16)]
        for guest in guests:
            guest.call("fill", 0, 8 * MIB, 1)
        assert rss_bytes() - before > 120 * MIB
        assert sum(guest.close().bytes for guest in guests) == 16 * 8 * MIB
        assert rss_bytes() - before < 4 * MIB


def test_warm_keeps_its_budget_resets_it_and_gives_the_rest_back():
    with host_with("warm", warm_guest="1 MiB", warm_total="2 MiB") as host:
        plugin = host.load(guest_file("bss"))
        guests = [plugin.spawn() for _ in range(4)]
        for guest in guests:
            guest.call("fill", 0, 2 * MIB, 9)
        for guest in guests:
            reclaim = guest.close()
            assert reclaim.kept_bytes <= MIB
            assert reclaim.kept_bytes + reclaim.deferred_bytes + reclaim.bytes == 2 * MIB
        stats = host.stats()
        assert 0 < stats.warm_bytes <= 2 * MIB
        assert host.trim() >= stats.warm_bytes
        balanced(host)


def test_warm_pages_go_back_by_themselves_when_idle():
    with host_with("warm", warm_idle=0.05) as host:
        guest = host.load(guest_file("bss")).spawn()
        guest.call("fill", 0, MIB, 9)
        guest.close()
        assert host.stats().warm_bytes == MIB
        before = private_bytes()
        wait_until(lambda: host.stats().warm_bytes == 0)
        assert before - private_bytes() > MIB // 2


def test_lazy_never_counts_as_returned_what_the_kernel_has_not_taken():
    with host_with("lazy") as host:
        guest = host.load(guest_file("bss")).spawn()
        guest.call("fill", 0, 4 * MIB, 9)
        reclaim = guest.close()
        assert (reclaim.bytes, reclaim.deferred_bytes) == (0, 4 * MIB)
        host.trim()
        balanced(host)


def test_the_sum_of_all_reclaims_is_what_the_host_counted():
    with host_with("immediate") as host:
        plugin = host.load(guest_file("bench"))
        total = 0
        for k in range(50):
            guest = plugin.spawn()
            guest.call("dirty", k)
            total += guest.close().bytes
        assert host.stats().returned_bytes == total


# ---- the operating system refuses ----

FAULTS = [
    ("MMAP", errno.ENOMEM),
    ("MPROTECT", errno.ENOMEM),
    ("MADVISE", errno.EAGAIN),
    ("PAGEMAP_SCAN", errno.EIO),
    ("PAGEMAP_READ", errno.EIO),
    ("MEMFD", errno.EMFILE),
    ("WRITE", errno.ENOSPC),
    ("SEAL", errno.EPERM),
    ("THREAD", errno.EAGAIN),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("call", "error"), FAULTS, ids=[call for call, _ in FAULTS])
def test_an_os_call_that_fails_is_named_or_survived_and_leaks_nothing(policy, call, error):
    """Each call of a whole life (load, spawn, grow, close) fails once, one after the other."""
    with host_with(policy) as host:
        warmed = host.load(guest_file("secrets"))
        warmed.spawn().close()
        del warmed
        files = open_files()
        named = 0
        for skip in range(12):
            collected()
            guest = None
            try:
                with failing(call, skip=skip, error=error):
                    others = [host.load(guest_file("passive")) for _ in range(6)]
                    assert len(others) == 6
                    plugin = host.load(guest_file("bench" if skip % 2 else "secrets"))
                    guest = plugin.spawn(tenant="t")
                    if skip % 2:
                        guest.call("dirty", 200)
                    else:
                        guest.call("grow", 3)
                        guest.call("write", 0xA5)
                    guest.close()
            except sandhost.NativeError as failed:
                named += 1
                assert failed.errno == error
                assert failed.operation in str(failed)
            except sandhost.OutOfMemory:
                named += 1
            finally:
                if guest is not None:
                    guest.close()
                guest = plugin = others = None
            secrets = host.load(guest_file("secrets"))
            with secrets.spawn() as fresh:
                assert fresh.call("scan", 0) == 0
                fresh.call("write", 0x5A)
            del secrets, fresh
        collected()
        host.trim()
        stats = host.stats()
        assert (stats.guests_live, stats.regions_live, stats.committed_bytes) == (0, 0, 0)
        assert host.tenant("t").memory_bytes == 0
        assert stats.images <= stats.quarantined_slots, "a lost slot keeps what it maps"
        assert open_files() <= files + stats.images
        if call in ("MEMFD", "WRITE", "SEAL"):
            assert named
        if call not in ("MADVISE", "MMAP", "MPROTECT"):
            assert stats.quarantined_slots == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_growth_that_the_os_refuses_is_minus_one_to_the_guest(policy):
    with host_with(policy) as host:
        with host.load(guest_file("no_max_memory")).spawn(tenant="t") as guest:
            with failing("MPROTECT"):
                assert guest.call("grow", 5) == -1
            assert guest.memory.size == guest.stats().memory_bytes == 65536
            assert host.tenant("t").memory_bytes == 65536
            assert guest.call("grow", 5) == 1
        balanced(host)


def test_growth_that_the_os_refuses_does_not_claim_a_limit():
    """A guest that traps on it ran out of the machine's memory, not of its own limit."""
    with host_with("warm") as host:
        with host.load(guest_file("grow_forever")).spawn() as guest:
            with failing("MPROTECT", times=1):
                with pytest.raises(sandhost.SandhostError) as caught:
                    guest.call("until_refused")
            assert "limit is" not in str(caught.value)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_slot_that_cannot_be_reset_is_quarantined_and_paid_for_by_the_host(policy):
    with host_with(policy, warm_guest=0) as host:
        plugin = host.load(guest_file("secrets"))
        guest = plugin.spawn(tenant="t")
        guest.call("write", 1)
        with failing("MADVISE", times=100), failing("PAGEMAP_SCAN", times=100):
            guest.close()
        assert guest.closed
        stats = host.stats()
        assert (stats.quarantined_slots, stats.regions_live, stats.guests_live) == (1, 0, 0)
        assert stats.reset_failures >= 1
        assert host.tenant("t").memory_bytes == 0, "the tenant does not pay for it"
        with plugin.spawn() as fresh:
            assert fresh.call("scan", 0) == 0


@pytest.mark.parametrize("call", ["MMAP", "THREAD", "MADVISE"])
def test_a_host_that_cannot_be_made_says_so_and_leaves_nothing(call):
    run_cleanly(f"""
        import errno, threading
        with sandhost.Host(cache=False, max_guests=4) as host:
            host.load(guest_file("secrets")).spawn().close()  # wasmtime's compiler threads stay
        host = None
        collected()
        files, threads = open_files(), len(threads_of())
        failed = 0
        for skip in range(4):
            try:
                with failing("{call}", skip=skip, times=9, error=errno.ENOMEM):
                    with sandhost.Host(cache=False, max_guests=4) as host:
                        host.load(guest_file("secrets")).spawn().close()
            except sandhost.NativeError as error:
                failed += 1
                assert error.errno == errno.ENOMEM
            host = None
            collected()
        assert failed
        assert open_files() <= files
        wait_until(lambda: len(threads_of()) <= threads)
    """)


def test_a_host_whose_ticker_may_not_go_first_says_so_and_leaves_nothing():
    run_cleanly("""
        import errno
        files, threads = open_files(), len(threads_of())
        with failing("SCHEDULER", error=errno.EPERM):
            try:
                sandhost.Host(cache=False, max_guests=4, realtime=1)
                raise AssertionError("it was made")
            except sandhost.NativeError as error:
                assert error.errno == errno.EPERM
                assert "pthread_setschedparam" in str(error)
        collected()
        assert open_files() <= files
        wait_until(lambda: len(threads_of()) <= threads)
    """)


def test_a_host_gives_back_its_address_space_threads_and_files():
    run_cleanly("""
        def once():
            with sandhost.Host(cache=False, max_guests=64) as host:
                plugin = host.load(guest_file("bench"))
                for guest in [plugin.spawn() for _ in range(8)]:
                    guest.call("dirty", 20)
                    guest.close()
        def size():
            return int(open("/proc/self/statm").read().split()[0]) * PAGE
        for _ in range(3):
            once()
        collected()
        files, threads, before = open_files(), len(threads_of()), size()
        for _ in range(20):
            once()
        collected()
        assert open_files() == files
        wait_until(lambda: len(threads_of()) <= threads)
        assert size() - before < 1 << 30, size() - before
    """)
