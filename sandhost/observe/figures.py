"""Every figure there is, once: its name, kind, unit and help, and where a reading has it.

    host ──► Reading ──► FIGURES ──► metrics.py: Prometheus
                                └──► otel.py: OpenTelemetry

What comes from a named tuple stands in a table by field, so that a test finds a field that has no
figure. Units are base units, told by the end of a name: `_bytes`, `_seconds`, `_ratio`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from .reading import Reading

__all__ = ["FIGURES", "TABLES", "UNITS", "Figure", "Kind"]

Kind = Literal["gauge", "counter", "histogram"]
UNITS = ("bytes", "seconds", "ratio")

Values = Iterable[tuple[tuple[str, ...], Any]]


class Figure(NamedTuple):
    """One figure, or one for each of some labels."""

    name: str
    """Without "sandhost_", and a counter without "_total"."""
    kind: Kind
    help: str
    labels: tuple[str, ...]
    values: Callable[[Reading], Values]
    """(label values, value) of each there is: a number, of a histogram a Latency."""

    @property
    def unit(self) -> str:
        """One of UNITS; "" of what is counted."""
        end = self.name.rpartition("_")[2]
        return end if end in UNITS else ""


class _Entry(NamedTuple):
    kind: Kind
    help: str
    name: str | None = None
    """Where it is not the field's own."""


def _gauge(text: str, name: str | None = None) -> _Entry:
    return _Entry("gauge", text, name)


def _counter(text: str, name: str | None = None) -> _Entry:
    return _Entry("counter", text, name)


_STATS = {
    "guests_live": _gauge("Guests alive."),
    "guests_peak": _gauge("Most guests that were alive at once."),
    "regions_live": _gauge("Linear memories of live guests, each in a slot of its own."),
    "regions_max": _gauge("Slots for linear memories."),
    "committed_bytes": _gauge("Accessible in live regions: what the memory limit is held against."),
    "memory_limit": _gauge("Memory limit of the host; absent without one.", "memory_limit_bytes"),
    "process_rss_bytes": _gauge("Resident memory of the whole process."),
    "reserved_bytes": _gauge("Address space reserved for regions; costs nothing until used."),
    "warm_slots": _gauge("Free slots whose pages stay resident for the next guest."),
    "warm_bytes": _gauge("Resident in free slots."),
    "queued_slots": _gauge("Slots that wait for their pages to go back; not free."),
    "queued_bytes": _gauge("Bytes that wait to go back to the operating system."),
    "quarantined_slots": _gauge("Slots that could not be reset and are never used again."),
    "images": _gauge("Images of initial data."),
    "image_bytes": _gauge("Initial data of plugins, shared by their guests."),
    "nodes": _gauge("NUMA nodes in use."),
    "stacks_live": _gauge("Guests that have a stack of their own: a call of them could wait."),
    "stack_bytes": _gauge("Committed in these stacks."),
    "stack_warm_bytes": _gauge("Resident in free stacks."),
    "spawns": _counter("Guests started."),
    "spawn_failures": _counter("Guests that could not be started."),
    "calls": _counter("Calls from Python of guests that have ended."),
    "host_calls": _counter("Calls of host functions by guests that have ended."),
    "traps": _counter("Calls that trapped."),
    "deadlines": _counter("Calls ended by their deadline."),
    "cancels": _counter("Calls ended by cancellation."),
    "memory_refusals": _counter("Growths and spawns refused by a memory limit."),
    "slots_same": _counter("Spawns into a slot last used with the same data and tenant."),
    "slots_cold": _counter("Spawns into a slot that held nothing."),
    "slots_other": _counter("Spawns into a slot mapped anew over another plugin's or tenant's."),
    "returned_bytes": _counter("Given back to the operating system."),
    "restored_bytes": _counter("Reset in place."),
    "reset_failures": _counter("Slots that could not be reset."),
}
_WORKERS = {
    "threads": _gauge("Threads that run calls which can wait and compute."),
    "idle": _gauge("Of these, without work."),
    "queued": _gauge("Guests that wait for one."),
}
_HEAP = {
    "live_bytes": _gauge(
        "What live handles count for, garbage that no sweep has reached included."
    ),
    "live_cells": _gauge("Live handles.", "live"),
    "heap_goal_bytes": _gauge("Size at which the next cycle should be done.", "goal_bytes"),
    "allocs": _counter("Handles made."),
    "frees": _counter("Handles freed."),
    "alloc_bytes": _counter("What made handles counted for.", "allocated_bytes"),
    "free_bytes": _counter("What freed handles counted for.", "freed_bytes"),
    "marked_bytes": _gauge("Found by the last or current cycle."),
    "scan_work_bytes": _gauge("Read by the last or current cycle."),
    "roots_bytes": _gauge("Of these, guests' memory."),
    "assist_ns": _counter("That allocating guests spent on marking.", "assist_seconds"),
    "mark_ns": _counter("CPU time of marking elsewhere.", "mark_seconds"),
    "sweep_ns": _counter("CPU time of sweeping.", "sweep_seconds"),
    "longest_stop_ns": _gauge("Longest that the collector held a thread.", "longest_stop_seconds"),
    "cycles": _counter("Cycles of the heap that are over."),
    "phase": _gauge("1 for what the heap is in.", "phase"),
    "finalizers_queued": _gauge("Objects that wait to be dropped."),
    "peak_bytes": _gauge("Live when the last cycle had marked everything."),
    "marking_ns": _counter("By the clock, in which cycles marked.", "marking_seconds"),
}
_COLLECTOR = {
    "cycles": _counter("Collections."),
    "by_reason": _counter("Collections by the trigger that was due.", "cycles_by_reason"),
    "forced_calls": _counter("Calls of collect()."),
    "forced_shared": _counter("Of these, answered by a cycle that another caller led."),
    "forced_over_budget": _counter("Of these, beyond the budget."),
    "deferred": _counter("Collections put off."),
    "pauses": _counter("Pauses of automatic collection."),
    "long_pauses": _counter("Of these, too long ones."),
    "policy_errors": _counter("Users' policies that raised, and were removed."),
    "swept_bytes": _counter("Given back while cycles ran."),
    "finalizers": _counter("Finalizers run."),
    "collecting_s": _counter("CPU time of marking and sweeping.", "collecting_seconds"),
}
_CYCLE = {
    "begin_s": _gauge("Of the last cycle: until marking ran.", "begin_seconds"),
    "mark_s": _gauge("Of the last cycle: marking, by the clock.", "mark_seconds"),
    "sweep_s": _gauge("Of the last cycle: sweeping, by the clock.", "sweep_seconds"),
    "assist_s": _gauge("Of the last cycle: CPU time of assists.", "assist_seconds"),
    "background_s": _gauge("Of the last cycle: CPU time of the marker.", "background_seconds"),
    "live_before_bytes": _gauge("Live when the last cycle began."),
    "live_after_bytes": _gauge("Live when the last cycle had swept."),
    "swept_bytes": _gauge("Given back while the last cycle ran."),
    "goal_bytes": _gauge("What the last cycle was to end with."),
    "trigger_bytes": _gauge("At which the last cycle was to begin."),
    "utilization": _gauge("Share of all cores that marking took in it.", "utilization_ratio"),
    "cons_mark": _gauge("Bytes allocated to bytes scanned in equal time.", "cons_mark_ratio"),
    "limited": _gauge("1: the memory limit set the last cycle's goal."),
    "limiting": _gauge("1: the CPU limiter kept guests from assisting."),
}
_PACER = {
    "goal_bytes": _gauge("Heap size at which the next cycle should be done."),
    "trigger_bytes": _gauge("Heap size at which the next cycle begins."),
    "memory_limit_bytes": _gauge("Soft limit of the handle heap; absent without one."),
    "percent": _gauge("Growth between collections; absent while off.", "growth_ratio"),
    "cores": _gauge("Cores that the collector reckons with."),
}

TABLES: Mapping[str, Mapping[str, _Entry]] = {
    "stats": _STATS,
    "workers": _WORKERS,
    "heap": _HEAP,
    "collector": _COLLECTOR,
    "cycle": _CYCLE,
    "pacer": _PACER,
}
"""By part of a reading, by field."""

_PREFIXES = {
    "stats": "",
    "workers": "workers_",
    "heap": "handles_",
    "collector": "gc_",
    "cycle": "gc_last_",
    "pacer": "gc_",
}
_SCALES = {"_ns": 1e-9, "percent": 0.01}
_NO_GOAL = 2**64 - 1
_PHASES = ("idle", "marking", "sweeping")


def _from_field(part: str, field: str, entry: _Entry) -> Figure:
    scale = next((by for end, by in _SCALES.items() if field.endswith(end)), 1)

    def values(reading: Reading) -> Values:
        of = getattr(reading, part)
        value = None if of is None else getattr(of, field)
        if value is not None and value != _NO_GOAL:
            yield (), value * scale if scale != 1 else value

    name = _PREFIXES[part] + (entry.name or field)
    if field in _LABELLED:
        return Figure(name, entry.kind, entry.help, *_LABELLED[field])
    return Figure(name, entry.kind, entry.help, (), values)


def _reasons(reading: Reading) -> Values:
    if reading.collector is not None:
        for reason, count in reading.collector.by_reason.items():
            yield (reason,), count


def _phases(reading: Reading) -> Values:
    if reading.heap is not None:
        for phase in _PHASES:
            yield (phase,), int(reading.heap.phase == phase)


_LABELLED: dict[str, tuple[tuple[str, ...], Callable[[Reading], Values]]] = {
    "by_reason": (("reason",), _reasons),
    "phase": (("phase",), _phases),
}


def _latencies(reading: Reading) -> Values:
    for operation, latency in reading.latencies.items():
        yield (operation,), latency


def _column(part: str, index: int) -> Callable[[Reading], Values]:
    def values(reading: Reading) -> Values:
        for name, row in getattr(reading, part).items():
            if row[index] is not None:
                yield (name,), row[index]

    return values


def _of_each(part: str, entries: Mapping[str, _Entry]) -> Iterable[Figure]:
    """What each tenant or plugin has; in the order of the rows in reading.py."""
    one = part[:-1]
    for index, (field, (kind, text, _)) in enumerate(entries.items()):
        yield Figure(f"{one}_{field}", kind, text, (one,), _column(part, index))


_TENANTS = {
    "memory_bytes": _gauge("Committed in regions of the tenant's guests."),
    "memory_limit_bytes": _gauge("The tenant's memory limit; absent without one."),
    "memory_peak_bytes": _gauge('Most that it ever was; of "other", at most.'),
}
_PLUGINS = {
    "guests_live": _gauge("Guests of the plugin that are alive."),
    "image_bytes": _gauge("Initial data, shared by all of its guests."),
    "spawns": _counter("Guests started of the plugin."),
    "calls": _counter("Calls of its guests that have ended."),
    "host_calls": _counter("Calls of host functions by its guests that have ended."),
    "traps": _counter("Calls of its guests that trapped."),
}

FIGURES: tuple[Figure, ...] = (
    *(
        _from_field(part, field, entry)
        for part, table in TABLES.items()
        for field, entry in table.items()
    ),
    Figure(
        "latency_seconds",
        "histogram",
        "How long spawns, calls and closes took; sums are within 1/64.",
        ("operation",),
        _latencies,
    ),
    *_of_each("tenants", _TENANTS),
    *_of_each("plugins", _PLUGINS),
)
