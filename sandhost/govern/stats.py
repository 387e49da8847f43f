"""One snapshot of a host: regions, memory, counters and latencies."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

from .._ffi import ffi, lib
from ..limits import UNLIMITED

__all__ = [
    "Latency",
    "MemStats",
    "NodeStats",
    "WorkerStats",
    "read_latency",
    "read_nodes",
    "read_stats",
    "read_workers",
]

_BUCKETS = 1184
_COUNT = lib.SH_HOST_FIGURES
_FIGURES = ffi.typeof(f"uint64_t[{_COUNT}]")
_new = ffi.new_allocator(should_clear_after_alloc=False)
_MOST_NODES = 64


class MemStats(NamedTuple):
    """What a host holds, at one moment. Bytes unless the name says otherwise.

    Counted by sandhost itself, unless a line names the kernel's file. Gauges first, then counters
    since the host was made. The figures are read one after the other
    without stopping anybody: under load, two of them may be a moment apart.
    """

    guests_live: int
    guests_peak: int
    regions_live: int
    """Linear memories of live guests, each in a slot of its own."""
    regions_max: int
    committed_bytes: int
    """Accessible in live regions: what the memory limit is held against."""
    memory_limit: int | None
    process_rss_bytes: int | None
    """Resident in the whole process, of /proc/self/statm; None: there is no /proc."""
    cgroup_bytes: int | None
    """Used by the cgroup, files in memory included: memory.current or, version 1,
    memory.usage_in_bytes. None: it is in none that limits memory."""
    reserved_bytes: int
    """Address space; costs nothing until it is used."""
    warm_slots: int
    """Free slots whose pages stay resident for the next guest."""
    warm_bytes: int
    queued_slots: int
    """Slots that wait for their pages to go back; not free."""
    queued_bytes: int
    quarantined_slots: int
    """Slots that could not be reset and are never used again."""
    images: int
    image_bytes: int
    """Initial data of plugins, shared by their guests."""
    nodes: int
    """NUMA nodes in use."""
    stacks_live: int
    """Guests that have a stack of their own: a call of them could wait."""
    stack_bytes: int
    """Committed in these stacks, of which a few pages are resident each; part of what limits hold."""
    stack_warm_bytes: int
    handles: int
    """Live ones, of guests and of the host itself."""
    handle_bytes: int
    """What the objects behind them count for."""
    handle_goal_bytes: int
    """Where the collector means to keep that until its next cycle ends."""

    spawns: int
    spawn_failures: int
    calls: int
    """Of guests that have ended, as the next."""
    host_calls: int
    traps: int
    deadlines: int
    cancels: int
    memory_refusals: int
    """Growths and spawns refused by a memory limit."""
    quota_refusals: int
    """Spawns and calls refused by a tenant's quota in a time, or of guests."""
    pressure_refusals: int
    """Spawns refused while the process was short of memory."""
    evictions: int
    """Guests that were ended for their memory."""
    handle_allocs: int
    handle_frees: int
    collections: int
    """Cycles of the handle heap's collector that have ended."""
    stall_us: int | None
    """Microseconds in which something waited for memory: memory.pressure of the cgroup, or
    /proc/pressure/memory. Up to 0.1 s old. None: the kernel does not say (CONFIG_PSI)."""
    slots_same: int
    """Spawns whose slot was last used with the same data and tenant: nothing to map."""
    slots_cold: int
    slots_other: int
    """Spawns whose slot was mapped anew over another plugin's or tenant's."""
    returned_bytes: int
    """Given back to the operating system."""
    restored_bytes: int
    """Reset in place."""
    reset_failures: int


_SOURCES = {
    "committed_bytes": "pool.committed_bytes",
    "process_rss_bytes": "rss_bytes",
    "warm_slots": "pool.slots_warm",
    "queued_slots": "pool.slots_queued",
    "quarantined_slots": "pool.slots_quarantined",
    "stacks_live": "stacks.regions_live",
    "stack_bytes": "stacks.committed_bytes",
    "stack_warm_bytes": "stacks.warm_bytes",
    "slots_same": "pool.acquired_same",
    "slots_cold": "pool.acquired_cold",
    "slots_other": "pool.acquired_other",
}
"""Where C has what it does not call by the same name in itself or in its pool."""


def _positions() -> dict[str, int]:
    found = {}
    for name, field in ffi.typeof("sh_host_stats").fields:
        found[name] = field.offset // 8
        if field.type.kind == "struct":
            for inner, part in field.type.fields:
                found[f"{name}.{inner}"] = (field.offset + part.offset) // 8
    return found


_AT = _positions()


def _position(field: str) -> int:
    return _AT[_SOURCES.get(field) or (field if field in _AT else f"pool.{field}")]


_in_order = operator.itemgetter(*(_position(field) for field in MemStats._fields))
_MAY_BE_UNKNOWN = tuple(
    _position(field) for field in ("memory_limit", "process_rss_bytes", "cgroup_bytes", "stall_us")
)


def read_stats(host: Any) -> MemStats:
    """Take a snapshot of a `sh_host`."""
    native = _new(_FIGURES)
    lib.sh_host_get_figures(host, native)
    figures: list[int | None] = ffi.unpack(native, _COUNT)
    for position in _MAY_BE_UNKNOWN:
        if figures[position] == UNLIMITED:
            figures[position] = None
    return MemStats._make(_in_order(figures))


class WorkerStats(NamedTuple):
    """The threads that run calls of `call_async` which compute, at one moment."""

    threads: int
    """Started so far; at most `Host(workers=...)`."""
    idle: int
    queued: int
    """Guests that wait for one of them."""


def read_workers(host: Any) -> WorkerStats:
    """Take a snapshot of the workers of a `sh_host`."""
    native = ffi.new("sh_worker_stats *")
    lib.sh_host_get_workers(host, native)
    return WorkerStats(native.threads, native.idle, native.queued)


class NodeStats(NamedTuple):
    """What the guests' memories hold on one NUMA node: those whose slots are the node's."""

    node: int
    """The kernel's number of it, as under /sys/devices/system/node."""
    cpus: int
    slots_live: int
    """Linear memories of live guests."""
    slots_warm: int
    """Free slots whose pages stay resident for the next guest."""
    committed_bytes: int
    """Accessible in live ones: what the memory limit is held against."""
    warm_bytes: int
    """Resident in free slots."""
    resident_bytes: int | None
    """Private pages in RAM of all its slots, counted by PAGEMAP_SCAN; None before Linux 6.7."""
    local_bytes: int | None
    """How many of these lie on the node: exact up to 4,096 pages, estimated from as many by
    move_pages(2) above; None where the kernel does not tell."""


def read_nodes(host: Any) -> tuple[NodeStats, ...]:
    """Take a snapshot of each NUMA node of a `sh_host`."""
    native = ffi.new("sh_node_stats[]", _MOST_NODES)
    count = lib.sh_host_node_stats(host, native, _MOST_NODES)
    return tuple(
        NodeStats(
            node=each.node,
            cpus=each.cpus,
            slots_live=each.slots_live,
            slots_warm=each.slots_warm,
            committed_bytes=each.committed_bytes,
            warm_bytes=each.warm_bytes,
            resident_bytes=_known(each.resident_bytes),
            local_bytes=_known(each.local_bytes),
        )
        for each in native[0:count]
    )


def _known(figure: int) -> int | None:
    return None if figure == lib.SH_UNKNOWN else figure


class Latency(NamedTuple):
    """How long one kind of operation took since the host was made. Nanoseconds, within 1/32."""

    total: int
    """How many operations."""
    max_ns: int
    buckets: tuple[tuple[int, int], ...]
    """(highest value of the bucket in ns, count), ascending, empty ones left out."""

    def percentile(self, percent: float) -> int:
        """Return the value that `percent` of the operations did not exceed; 0 if there were none."""
        wanted = self.total * percent / 100
        passed = 0
        for value, count in self.buckets:
            passed += count
            if passed >= wanted:
                return min(value, self.max_ns)
        return self.max_ns


def read_latency(host: Any, operation: int) -> Latency:
    """Take a snapshot of one histogram of a `sh_host`."""
    native = ffi.new("sh_histogram *")
    lib.sh_host_histogram(host, operation, native)
    counts = ffi.unpack(native.counts, _BUCKETS)
    buckets = tuple(
        (lib.sh_histogram_value(bucket), count) for bucket, count in enumerate(counts) if count
    )
    return Latency(sum(counts), native.max, buckets)
