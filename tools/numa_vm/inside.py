"""What runs inside the machine, as its first and only program; archive.py puts a first line before it.

Where a page lies is asked of the kernel, with move_pages(2) and by /proc/self/numa_maps, and not of
the package, whose own figures are then held against that.
"""

import collections
import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PAGE = 4096
NODES = (0, 1)
IMAGE, OWN = range(16), range(16, 16 + 256)
"""OS pages of the guest's memory: its data, mapped from a file; and those that it dirties."""
libc = ctypes.CDLL(None, use_errno=True)
wrong: list[str] = []


# ---- the machine ----


def mount_all() -> None:
    """Mount what a program expects to find."""
    for kind, where in (
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
    ):
        libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None)


def turn_off() -> None:
    """End the machine. RB_POWER_OFF."""
    os.sync()
    libc.reboot(0x4321FEDC)


def read(path: str) -> str:
    """Return a file of the kernel's."""
    with open(path) as file:
        return file.read().strip()


def cpus_of(node: int) -> set[int]:
    """Return the CPUs of a node."""
    first, _, last = read(f"/sys/devices/system/node/node{node}/cpulist").partition("-")
    return set(range(int(first), int(last or first) + 1))


def free_mib(node: int) -> int:
    """Return how much memory of a node is free."""
    text = read(f"/sys/devices/system/node/node{node}/meminfo")
    found = re.search(r"MemFree:\s+(\d+)", text)
    assert found
    return int(found[1]) // 1024


@contextmanager
def on_node(node: int) -> Iterator[None]:
    """Run on the CPUs of one node only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus_of(node))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ---- where pages lie ----


def address_of(guest: Any) -> int:
    """Return where a guest's memory begins."""
    from sandhost._native import ffi

    return int(ffi.cast("uintptr_t", guest.memory._base))


def nodes_by_move_pages(start: int, pages: int) -> dict[int, int]:
    """Count the pages on each node; those that are not there are left out."""
    addresses = (ctypes.c_void_p * pages)(*range(start, start + pages * PAGE, PAGE))
    status = (ctypes.c_int * pages)()
    if libc.syscall(279, 0, ctypes.c_ulong(pages), addresses, None, status, 0):
        raise OSError(ctypes.get_errno(), "move_pages")
    return dict(sorted(collections.Counter(node for node in status if node >= 0).items()))


def policies_by_numa_maps(start: int, pages: int) -> set[str]:
    """Return the policies of the mappings that hold these addresses."""
    end = start + pages * PAGE
    lines = [line.split() for line in read("/proc/self/numa_maps").splitlines()]
    starts = [int(words[0], 16) for words in lines]
    reach = [*starts[1:], 1 << 64]
    return {
        words[1]
        for words, first, after in zip(lines, starts, reach)
        if first < end and after > start
    }


# ---- the table ----


def row(what: str, expected: int, policy: str, guest: Any, span: range) -> None:
    """Look where a guest's pages lie, and under which policy, and print a line."""
    start, pages = address_of(guest) + span.start * PAGE, len(span)
    found = nodes_by_move_pages(start, pages)
    policies = policies_by_numa_maps(start, pages)
    right = found == {expected: pages} and policies == {policy}
    print(
        f"{what:55} {expected:8} {found.get(0, 0):7} {found.get(1, 0):7}  "
        f"{', '.join(sorted(policies)):10} {'ok' if right else 'WRONG'}",
        flush=True,
    )
    if not right:
        wrong.append(what)


def claim(what: str, holds: bool) -> None:
    """Print a line of something else that must hold."""
    print(f"{what:92} {'ok' if holds else 'WRONG'}", flush=True)
    if not holds:
        wrong.append(what)


def heading(bind: bool) -> None:
    """Begin a table."""
    name = "BIND" if bind else "PREFERRED"
    print(f"\n{name:55} {'expected':>8} {'node 0':>7} {'node 1':>7}  numa_maps", flush=True)


def placement(bind: bool) -> None:
    """Spawn, dirty, close and spawn again on both nodes."""
    import sandhost
    from sandhost.bench.workload import guest_bytes

    heading(bind)
    policy = "bind" if bind else "prefer"
    with sandhost.Host(numa_bind=bind, cache=False) as host:
        plugin = host.load(guest_bytes("bench"))
        guests = {}
        for node in NODES:
            with on_node(node):
                guests[node] = plugin.spawn()
                guests[node].call("dirty", len(OWN))
            row(f"spawned and dirtied on node {node}", node, f"{policy}:{node}", guests[node], OWN)
        for node in NODES:
            with on_node(node):
                guest = plugin.spawn(tenant="across")
            with on_node(1 - node):
                guest.call("dirty", len(OWN))
                guest.memory.write(0, bytes(len(IMAGE) * PAGE))
            what = f"spawned on node {node}, dirtied from node {1 - node}"
            row(what, node, f"{policy}:{node}", guest, OWN)
            row("    pages of the plugin's data, by first touch", 1 - node, "default", guest, IMAGE)
            guest.close()
        figures = {each.node: each for each in host.node_stats()}
        print(*(f"  {each}" for each in figures.values()), sep="\n")
        claim(
            "host.node_stats() agrees: all pages are local, but those of the plugin's data",
            all(
                (each.slots_live, each.slots_warm) == (1, 1)
                and each.resident_bytes == (2 * len(OWN) + len(IMAGE)) * PAGE
                and each.local_bytes == 2 * len(OWN) * PAGE
                for each in figures.values()
            ),
        )
        for node in NODES:
            before = address_of(guests[node])
            with on_node(1 - node):
                guests[node].close()  # reset here, with its pages kept
            with on_node(node):
                guest = plugin.spawn()
            claim(
                f"a slot of node {node}, closed on node {1 - node}, is the next of node {node}, and clean",
                address_of(guest) == before
                and not any(guest.memory.read(OWN.start * PAGE, len(OWN) * PAGE)),
            )
            row("    the pages that it kept", node, f"{policy}:{node}", guest, OWN)
            guest.close()
        claim("the kernel took every policy", not refused(host))
    with sandhost.Host(numa_bind=bind, cache=False, reclaim="immediate") as host:
        plugin = host.load(guest_bytes("bench"))
        for node in NODES:
            with on_node(node):
                plugin.call("dirty", len(OWN))
                guest = plugin.spawn()
            gone = nodes_by_move_pages(address_of(guest), len(IMAGE) + len(OWN))
            claim(f"immediate: no page of node {node}'s slot is left after a close", gone == {})
            guest.call("dirty", len(OWN))
            row(f"immediate: the next guest of node {node}", node, f"{policy}:{node}", guest, OWN)
            guest.close()


def refused(host: Any) -> int:
    """Return how many policies the kernel refused."""
    from sandhost._native import ffi, lib

    native = ffi.new("sh_host_stats *")
    lib.sh_host_get_stats(host.native, native)
    return int(native.pool.numa_refused)


# ---- a node that is full ----

FILL = """(module (memory (export "memory") 1)
  (func (export "fill") (param $pages i32) (result i32)
    (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1)) (then (return (i32.const 0))))
    (memory.fill (i32.const 0) (i32.const 7) (i32.shl (local.get $pages) (i32.const 16)))
    (i32.const 1)))"""


def fill(bind: bool, mib: int, limit_mib: int | None) -> None:
    """Dirty so much on node 1, in a process of its own; print the nodes where it came to lie."""
    import sandhost

    limit = None if limit_mib is None else f"{limit_mib} MiB"
    with (
        on_node(1),
        sandhost.Host(numa_bind=bind, cache=False, memory_limit=limit) as host,
        host.load(FILL.encode()).spawn(limits=sandhost.Limits(memory="4 GiB")) as guest,
    ):
        done = guest.call("fill", mib * 16)
        found = nodes_by_move_pages(address_of(guest), mib * 256) if done else {}
        print(done, found.get(0, 0), found.get(1, 0), flush=True)


def filled(bind: bool, mib: int, limit_mib: int | None = None) -> tuple[int, list[int]]:
    """Return the status of `fill` in a process of its own, and what it printed."""
    words = [str(word) for word in (int(bind), mib, -1 if limit_mib is None else limit_mib)]
    done = subprocess.run(["/init", *words], stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, [int(word) for word in done.stdout.split()]


def full_node() -> None:
    """Ask more of node 1 than it has."""
    free = {node: free_mib(node) for node in NODES}
    mib = free[1] + 96
    print(
        f"\nA guest of node 1 dirties {mib} MiB; free: {free[0]} MiB on node 0, {free[1]} on node 1",
        flush=True,
    )
    status, numbers = filled(bind=False, mib=mib)
    print(f"  PREFERRED: status {status}, pages on node 0 and 1: {numbers[1:]}", flush=True)
    claim(
        "PREFERRED: what does not fit on node 1 comes from node 0, and the guest goes on",
        status == 0 and numbers[0] == 1 and numbers[1] > 0 and sum(numbers[1:]) == mib * 256,
    )
    status, numbers = filled(bind=True, mib=mib)
    print(f"  BIND: status {status}, printed {numbers}", flush=True)
    claim(
        "BIND: the kernel ends the whole process (SIGKILL), though node 0 has room",
        status == -signal.SIGKILL and numbers == [],
    )
    status, numbers = filled(bind=True, mib=mib, limit_mib=free[1] // 2)
    print(
        f"  BIND, memory_limit of half the node: status {status}, grown: {numbers[0]}", flush=True
    )
    claim(
        "BIND with a memory limit below the node's: the guest's memory.grow fails, nothing else does",
        status == 0 and numbers[0] == 0,
    )


# ---- all of it ----


def main() -> None:
    """Print what the machine is, then each table, then the verdict."""
    import sandhost

    print(
        f"Linux {platform.release()}, Python {platform.python_version()}, sandhost {sandhost.__version__}"
    )
    for node in NODES:
        distances = read(f"/sys/devices/system/node/node{node}/distance")
        cpus = ", ".join(map(str, sorted(cpus_of(node))))
        print(f"node {node}: CPUs {cpus}; {free_mib(node)} MiB free; distances {distances}")
    print("An emulated machine: near and far memory take the same time, so none is measured.")
    parts: list[Callable[[], None]] = [lambda: placement(False), lambda: placement(True), full_node]
    for part in parts:
        part()


if os.getpid() != 1:
    bind_, mib_, limit_ = map(int, sys.argv[1:])
    fill(bool(bind_), mib_, None if limit_ < 0 else limit_)
else:
    try:
        mount_all()
        main()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        wrong.append("the program failed")
    print()
    print(f"WRONG: {'; '.join(wrong)}" if wrong else "all pages are where they belong", flush=True)
    turn_off()
