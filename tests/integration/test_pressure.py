"""Memory pressure for real: this process's own memory, and a child's in a cgroup of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers import WASM_PAGE, Background, guest_file, wait_until

import sandhost
from sandhost.govern.cgroup import find_group, stall_file
from sandhost.govern.ladder import Level

MIB = 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_the_figures_are_the_kernels_own(host):
    plugin = host.load(guest_file("bench"))
    with plugin.spawn() as guest:
        guest.call("dirty", 256)
        stats = host.stats()
        assert abs(stats.process_rss_bytes - resident()) < 4 * MIB
    _ = host.pressure  # finds the files
    stats = host.stats()
    group = find_group()
    if group is not None:
        assert abs(stats.cgroup_bytes - group.used_bytes) < 256 * MIB
    if stall_file(group=group) is not None:
        assert stats.stall_us >= 0


def test_committed_and_resident_memory_add_up_with_the_kernels_map():
    """What the host says its regions hold, and what smaps says of them, page for page."""
    with sandhost.Host(cache=False, max_guests=64, reclaim="warm") as host:
        plugin = host.load(guest_file("bench"))
        guests = [plugin.spawn() for _ in range(20)]
        for guest in guests:
            guest.call("dirty", 100)
        committed = host.stats().committed_bytes
        private = writable = 0
        for mapping in Path("/proc/self/smaps").read_text().split("VmFlags:"):
            fields = dict(
                line.split(":", 1) for line in mapping.splitlines() if ":" in line and "kB" in line
            )
            if "sandhost" in mapping and fields:
                private += int(fields["Private_Dirty"].split()[0]) * 1024
                writable += int(fields["Size"].split()[0]) * 1024 * ("rw-p" in mapping)
        # Of each guest its memory of 17 wasm pages; what maps its image names it.
        assert committed == 20 * 17 * WASM_PAGE
        assert 0 < private <= committed
        for guest in guests:
            guest.close()
        stats = host.stats()
        assert stats.committed_bytes == 0
        assert stats.warm_bytes >= 20 * 100 * 4096
        released = host.release_os_memory()
        assert released.slots_bytes >= stats.warm_bytes
        assert host.stats().warm_bytes == 0


def test_released_memory_is_gone_from_the_process():
    with sandhost.Host(cache=False, max_guests=64) as host:
        plugin = host.load(guest_file("bench"))
        guests = [plugin.spawn() for _ in range(48)]
        for guest in guests:
            guest.call("dirty", 256)
            guest.close()
        wait_until(lambda: host.stats().queued_bytes == 0)
        warm, before = host.stats().warm_bytes, resident()
        assert warm >= 48 * MIB
        released = host.release_os_memory()
        assert released.slots_bytes == warm
        assert before - resident() >= 0.9 * warm
        assert released.resident_bytes >= 0.9 * warm


def test_a_process_limit_brings_a_controller_and_a_limit_for_guests():
    with sandhost.Host(cache=False, max_guests=8, process_limit="64 GiB") as host:
        wait_until(lambda: host.pressure.stats().samples >= 2)
        assert host.pressure.level == Level.CALM
        assert host.pressure.limit_bytes == 64 * 2**30
        assert host.stats().memory_limit == 64 * 2**30 * 9 // 10
    assert host.pressure.closed


def test_without_a_limit_nobody_watches_until_asked():
    with sandhost.Host(cache=False, max_guests=8) as host:
        assert host.stats().memory_limit is None
        assert host.pressure.limit_bytes is None
        time.sleep(0.15)
        assert host.pressure.stats().samples == 0
        host.pressure.start()
        wait_until(lambda: host.pressure.stats().samples >= 1)


@pytest.mark.parametrize("limit", ["16 XB", 0, "-1", "1 GB/s"])
def test_process_limits_that_cannot_be_meant_are_refused(limit):
    with pytest.raises(sandhost.ConfigError):
        sandhost.Host(cache=False, process_limit=limit).close()


def test_from_pressure_to_a_refusal_and_back():
    """The limit is moved instead of the memory: all else is as it would be."""
    with sandhost.Host(cache=False, max_guests=64, process_limit="64 GiB") as host:
        plugin = host.load(guest_file("no_max_memory"))
        small, large = plugin.spawn(tenant="small"), plugin.spawn(tenant="large")
        large.call("grow", 500)
        # 0.9 of the limit: the tenant above its share is refused and grows no more, the other is not.
        host.pressure.limit_bytes = int(resident() / 0.9)
        wait_until(lambda: host.pressure.level == Level.REFUSE)
        wait_until(lambda: refused(plugin, "large"))
        assert not refused(plugin, "small")
        assert large.call("grow", 1) == -1
        assert small.call("grow", 1) == 1
        # 0.96: nobody is welcome.
        host.pressure.limit_bytes = int(resident() / 0.96)
        wait_until(lambda: refused(plugin, "small"))
        with pytest.raises(sandhost.Overloaded) as caught:
            plugin.call("grow", 0)
        assert 0 < caught.value.retry_after_s <= 1
        host.pressure.limit_bytes = 64 * 2**30
        wait_until(lambda: not refused(plugin, "small") and not refused(plugin, "large"))
        assert large.call("grow", 1) == 501
        wait_until(lambda: host.pressure.level == Level.CALM)
        assert host.stats().evictions == 0
        assert host.stats().pressure_refusals > 0
        small.close()
        large.close()


def refused(plugin, tenant):
    try:
        plugin.spawn(tenant=tenant).close()
    except sandhost.Overloaded:
        return True
    return False


def test_the_largest_tenants_guests_are_ended_last_and_only_they(caplog):
    with sandhost.Host(cache=False, max_guests=64, process_limit="64 GiB") as host:
        plugin, spin = host.load(guest_file("no_max_memory")), host.load(guest_file("spin"))
        innocent = [plugin.spawn(tenant=f"t{k}") for k in range(5)]
        hostile = [plugin.spawn(tenant="hostile") for _ in range(3)]
        for guest in hostile:
            guest.call("grow", 300)
        mapped = hostile[0].memory  # Python holds it as well
        host.pressure.limit_bytes = int(resident() / 1.05)
        wait_until(lambda: len(host.pressure.ended) >= 3)
        host.pressure.limit_bytes = 64 * 2**30
        ended = list(host.pressure.ended)[:3]
        assert {one.tenant for one in ended} == {"hostile"}
        assert {one.guest for one in ended} and all(one.closed for one in ended)
        assert ended[0].tenant_bytes == 3 * 301 * WASM_PAGE > ended[0].share_bytes
        for guest in hostile:
            with pytest.raises(sandhost.GuestClosed):
                guest.call("grow", 0)
            guest.close()
        with pytest.raises(sandhost.GuestClosed):
            mapped.read(0, 1)
        for guest in innocent:
            assert guest.call("grow", 0) == 1
            guest.close()
        assert "a guest was ended" in caplog.text
        wait_until(lambda: host.pressure.level == Level.CALM)
        with spin.spawn():
            pass


def test_a_call_of_a_guest_that_is_ended_says_so_and_the_guest_goes_after_it():
    with sandhost.Host(cache=False, max_guests=64, process_limit="64 GiB") as host:
        plugin, spin = host.load(guest_file("no_max_memory")), host.load(guest_file("spin"))
        innocent = [plugin.spawn(tenant=f"t{k}") for k in range(5)]
        with spin.spawn(tenant="hostile") as guest:
            call = Background(guest.call, "spin")
            wait_until(lambda: guest.stats().running)
            host.pressure.limit_bytes = int(resident() / 1.05)
            with pytest.raises(sandhost.GuestEvicted):
                call.result()
            wait_until(lambda: host.stats().guests_live == len(innocent))
            host.pressure.limit_bytes = 64 * 2**30
            first, *more = host.pressure.ended
            assert (first.tenant, first.closed) == ("hostile", False)
            assert {one.tenant for one in more} <= {"hostile"}
        for other in innocent:
            assert other.call("grow", 0) == 1
            other.close()


BOMB = """
    import sandhost, sys, threading, time

    limit = int(sys.argv[1])
    host = sandhost.Host(cache=False, process_limit="cgroup")
    assert host.pressure.limit_bytes == limit, host.pressure.limit_bytes
    plugin = host.load(sys.argv[2])
    ended, worst, begun = 0, 0, time.monotonic()

    def goes_on():  # for 3 seconds, on a busy machine for longer: until somebody was refused
        age = time.monotonic() - begun
        return age < 3 or (age < 60 and host.stats().pressure_refusals == 0)

    def bomb(tenant):
        global ended
        while goes_on():
            try:
                with plugin.spawn(tenant=tenant, limits=sandhost.Limits(memory="64 MiB")) as guest:
                    while guest.call("grow", 16) > 0:
                        at = guest.memory.size - 16 * 65536
                        guest.memory.write(at, b"x" * (16 * 65536))
                    time.sleep(0.05)
            except (sandhost.Overloaded, sandhost.OutOfMemory):
                time.sleep(0.01)
            except (sandhost.GuestClosed, sandhost.GuestEvicted):
                ended += 1

    threads = [threading.Thread(target=bomb, args=(f"t{k}",)) for k in range(12)]
    for thread in threads: thread.start()
    while any(thread.is_alive() for thread in threads):
        worst = max(worst, host.stats().process_rss_bytes)
        time.sleep(0.005)
    stats = host.pressure.stats()
    print(worst, stats.transitions, host.stats().pressure_refusals)
    host.close()
"""


@pytest.fixture
def small_group():
    """A cgroup of 512 MiB below this process's own; the kernel kills who passes it."""
    group = find_group()
    if group is None or not os.access(group.folder, os.W_OK):
        pytest.skip("no memory cgroup can be made here")
    folder = group.folder / f"sandhost-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    name = "memory.limit_in_bytes" if group.version == 1 else "memory.max"
    try:
        (folder / name).write_text(str(512 * MIB))
        yield folder
    finally:
        for _ in range(100):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def test_a_process_in_a_cgroup_stays_below_its_limit_whatever_guests_do(small_group):
    limit = 512 * MIB
    enter = f"import os; open('{small_group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            enter + textwrap.dedent(BOMB),
            str(limit),
            guest_file("no_max_memory"),
        ],
        capture_output=True,
        cwd="/",  # the installed package, not the sources here
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    worst, transitions, refusals = map(int, done.stdout.split())
    assert (
        worst <= 1.03 * limit
    )  # libraries that other groups have paid for are resident here as well
    assert transitions > 0
    assert refusals > 0
