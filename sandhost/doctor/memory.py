"""Memory: address space, mappings, overcommit, pages, nodes, limits and what is left."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from functools import partial

from ..govern.cgroup import find_group
from ..units import format_bytes
from .findings import Finding
from .machine import Machine

__all__ = ["memory_findings"]

_memory = partial(Finding, "memory")

_GUEST_ADDRESSES = 4 * 2**30 + 32 * 2**20  # 4 GiB that 32-bit code can reach, and a guard
_DEFAULT_GUESTS = 16_384  # Host(max_guests=...)
_FEW_GUESTS = 64
_VMAS_PER_GUEST = 2  # what is committed, and what is not
_VMAS_OF_PYTHON = 1000  # generous
_SMALL_BYTES = 512 * 2**20
_SHARE_FULL = 0.9
_STACK_BYTES = 2 * 2**20  # wasm stack of 512 KiB, Python's own frames, and room


def memory_findings(machine: Machine) -> Iterator[Finding]:
    """Yield what there is to say about memory."""
    yield _address_space(machine)
    yield _map_count(machine)
    yield _overcommit(machine)
    yield _huge_pages(machine)
    yield _stack(machine)
    yield from _physical(machine)
    yield _cgroup(machine)
    yield _nodes(machine)
    yield _cpus(machine)


def _guests(number: int) -> str:
    return f"room for {number:,} guest{'s' * (number != 1)}"


def _address_space(machine: Machine) -> Finding:
    """Reserve what a default host may come to, or the largest part of it that can be had."""
    name = "address space"
    why = "A guest takes 4 GiB of addresses, not of memory, so that no access needs a check."
    guests = _DEFAULT_GUESTS
    while guests and machine.ask.reserve(guests * _GUEST_ADDRESSES):
        guests //= 2
    if guests == _DEFAULT_GUESTS:
        return _memory(name, "ok", _guests(guests) + " and more", why)
    limited = machine.ask.limit(resource.RLIMIT_AS) is not None
    advice = (
        "Lift the limit on addresses (ulimit -v unlimited); limit memory with a cgroup instead."
        if limited
        else "Look for what limits mmap: a small virtual address space, a sandbox, or 39-bit pages."
    )
    status = "problem" if guests < _FEW_GUESTS else "note"
    return _memory(name, status, _guests(guests), why, advice)  # type: ignore[arg-type]


def _map_count(machine: Machine) -> Finding:
    name, why = (
        "vm.max_map_count",
        "A live guest takes about two mappings, and their number is limited.",
    )
    most = machine.number("proc/sys/vm/max_map_count")
    if most is None:
        return _memory(name, "note", "unknown", why, "Mount /proc.")
    guests = max(most - _VMAS_OF_PYTHON, 0) // _VMAS_PER_GUEST
    found = f"{most:,}: {_guests(guests)}"
    if guests >= _DEFAULT_GUESTS:
        return _memory(name, "ok", found, why)
    wanted = _DEFAULT_GUESTS * _VMAS_PER_GUEST + _VMAS_OF_PYTHON
    advice = f"For more guests at once: sysctl vm.max_map_count={max(wanted, 65_530)}"
    if guests < _FEW_GUESTS:
        return _memory(name, "problem", found, why, advice)
    return _memory(name, "note", found, why, advice)


def _overcommit(machine: Machine) -> Finding:
    name, why = "vm.overcommit_memory", "Reserved addresses must not count as used memory."
    mode = machine.text("proc/sys/vm/overcommit_memory")
    if mode == "2":
        limit, used = machine.kib("CommitLimit"), machine.kib("Committed_AS")
        left = "" if limit is None or used is None else f", {format_bytes(limit - used)} left"
        advice = (
            "What guests have committed counts although they never touch it: set the memory_limit "
            "of the host below what is left, or vm.overcommit_memory=0."
        )
        return _memory(name, "note", f"2, strict{left}", why, advice)
    found = {"0": "0, by estimate", "1": "1, always"}.get(mode or "", mode or "unknown")
    return _memory(name, "ok", found, why)


def _huge_pages(machine: Machine) -> Finding:
    text = machine.text("sys/kernel/mm/transparent_hugepage/enabled") or ""
    chosen = text.partition("[")[2].partition("]")[0] or "not there"
    why = "2 MiB for a guest that writes a byte would be a waste, so regions opt out of them."
    return _memory("huge pages", "ok", chosen, why)


def _stack(machine: Machine) -> Finding:
    name, why = "stack", "A guest's calls run on the stack of the thread that calls it."
    limit = machine.ask.limit(resource.RLIMIT_STACK)
    if limit is None or limit >= _STACK_BYTES:
        found = "unlimited" if limit is None else format_bytes(limit)
        return _memory(name, "ok", found, why)
    advice = "Raise it (ulimit -s 8192), or give a smaller Host(stack=...)."
    return _memory(name, "note", format_bytes(limit), why, advice)


def _physical(machine: Machine) -> Iterator[Finding]:
    total, available = machine.kib("MemTotal"), machine.kib("MemAvailable")
    why = "All guests share it with everything else."
    if total is None or available is None:
        yield _memory("memory", "note", "unknown", why, "Mount /proc.")
    else:
        found = f"{format_bytes(total)}, {format_bytes(available)} available"
        if available < _SMALL_BYTES:
            advice = "Give the host a memory_limit, so that guests fail before the machine does."
            yield _memory("memory", "note", found, why, advice)
        else:
            yield _memory("memory", "ok", found, why)
    swap = machine.kib("SwapTotal")
    found = "unknown" if swap is None else format_bytes(swap) if swap else "none"
    yield _memory("swap", "ok", found, "Pages there count as written, and are reset like the rest.")


def _cgroup(machine: Machine) -> Finding:
    name, why = "cgroup", "At its memory limit the kernel kills the process, not the guest."
    group = find_group(machine.root)
    if group is None:
        return _memory(name, "ok", "no memory controller", why)
    if group.limit_bytes is None:
        return _memory(name, "ok", f"v{group.version}, no memory limit", why)
    found = f"v{group.version}, {format_bytes(group.used_bytes)} of {format_bytes(group.limit_bytes)} used"
    if group.used_bytes > _SHARE_FULL * group.limit_bytes:
        advice = "Raise the limit of the group, or stop what fills it."
        return _memory(name, "problem", found, why, advice)
    advice = "Set the memory_limit of the host some way below it."
    return _memory(name, "note", found, why, advice)


def _nodes(machine: Machine) -> Finding:
    why = "Each NUMA node has a pool of its own, and a guest's memory is near the CPU that runs it."
    online = machine.text("sys/devices/system/node/online")
    if online is None:
        return _memory("NUMA", "ok", "unknown to the kernel: one node", why)
    count = 0
    for part in online.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit():
            continue
        count += int(last or first) - int(first) + 1
    return _memory("NUMA", "ok", f"{count} node{'s' * (count != 1)}", why)


def _cpus(machine: Machine) -> Finding:
    usable = machine.ask.cpus()
    found = f"{usable} CPU{'s' * (usable != 1)}"
    quota, _, period = (machine.text("sys/fs/cgroup/cpu.max") or "max 1").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        found += f", at most {int(quota) / int(period):.3g} of them by cgroup"
    why = "Guests run outside the GIL, as many at once as there are CPUs."
    return _memory("CPUs", "ok", found, why)
