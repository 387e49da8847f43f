"""What is said of each figure: kind, help, and its name where that is not the field's own.

A table for each part of a reading, by field. A test finds a field that stands in none. Units are base
units, told by the end of a name: `_bytes`, `_seconds`, `_ratio`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

__all__ = ["TABLES", "Entry", "Kind"]

Kind = Literal["gauge", "counter", "histogram"]
Table = Mapping[str, "Entry | None"]


class Entry(NamedTuple):
    """What is said of one field."""

    kind: Kind
    help: str
    name: str | None = None
    """Where it is not the field's own."""


def _gauge(text: str, name: str | None = None) -> Entry:
    return Entry("gauge", text, name)


def _counter(text: str, name: str | None = None) -> Entry:
    return Entry("counter", text, name)


_IN_STATS = None
"""MemStats has the same figure, also where there is no heap."""

_STATS: Table = {
    "guests_live": _gauge("Guests alive."),
    "guests_peak": _gauge("Most guests that were alive at once."),
    "regions_live": _gauge("Linear memories of live guests, each in a slot of its own."),
    "regions_max": _gauge("Slots for linear memories."),
    "committed_bytes": _gauge("Accessible in live regions: what the memory limit is held against."),
    "memory_limit": _gauge("Memory limit of the host; absent without one.", "memory_limit_bytes"),
    "process_rss_bytes": _gauge("Resident memory of the whole process."),
    "cgroup_bytes": _gauge("Used by the cgroup, files in memory included; absent without a limit."),
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
    "handles": _gauge("Live handles, of guests and of the host."),
    "handle_bytes": _gauge("What live handles count for, garbage not yet swept included."),
    "handle_goal_bytes": _gauge("Size of that at which the next cycle should be done."),
    "spawns": _counter("Guests started."),
    "spawn_failures": _counter("Guests that could not be started."),
    "calls": _counter("Calls from Python of guests that have ended."),
    "host_calls": _counter("Calls of host functions by guests that have ended."),
    "traps": _counter("Calls that trapped."),
    "deadlines": _counter("Calls ended by their deadline."),
    "cancels": _counter("Calls ended by cancellation."),
    "memory_refusals": _counter("Growths and spawns refused by a memory limit."),
    "quota_refusals": _counter("Spawns and calls refused by a tenant's quota."),
    "pressure_refusals": _counter("Spawns refused while the process was short of memory."),
    "evictions": _counter("Guests ended for their memory."),
    "handle_allocs": _counter("Handles made."),
    "handle_frees": _counter("Handles freed."),
    "collections": _counter("Cycles of the handle heap's collector."),
    "stall_us": _counter("In which something waited for memory (PSI).", "memory_stall_seconds"),
    "slots_same": _counter("Spawns into a slot last used with the same data and tenant."),
    "slots_cold": _counter("Spawns into a slot that held nothing."),
    "slots_other": _counter("Spawns into a slot mapped anew over another plugin's or tenant's."),
    "returned_bytes": _counter("Given back to the operating system."),
    "restored_bytes": _counter("Reset in place."),
    "reset_failures": _counter("Slots that could not be reset."),
}
_WORKERS: Table = {
    "threads": _gauge("Threads that run calls which can wait and compute."),
    "idle": _gauge("Of these, without work."),
    "queued": _gauge("Guests that wait for one."),
}
_HEAP: Table = {
    "live_bytes": _IN_STATS,
    "live_cells": _IN_STATS,
    "heap_goal_bytes": _IN_STATS,
    "allocs": _IN_STATS,
    "frees": _IN_STATS,
    "alloc_bytes": _counter("What made handles counted for.", "allocated_bytes"),
    "free_bytes": _counter("What freed handles counted for.", "freed_bytes"),
    "marked_bytes": _gauge("Found by the last or current cycle."),
    "scan_work_bytes": _gauge("Read by the last or current cycle."),
    "roots_bytes": _gauge("Of these, guests' memory."),
    "assist_ns": _counter("That allocating guests spent on marking.", "assist_seconds"),
    "mark_ns": _counter("CPU time of marking elsewhere.", "mark_seconds"),
    "sweep_ns": _counter("CPU time of sweeping.", "sweep_seconds"),
    "longest_stop_ns": _gauge("Longest that the collector held a thread.", "longest_stop_seconds"),
    "cycles": _IN_STATS,
    "begun": _counter("Cycles that have begun.", "cycles_begun"),
    "phase": _gauge("1 for what the heap is in."),
    "finalizers_queued": _gauge("Objects that wait to be dropped."),
    "peak_bytes": _gauge("Live when the last cycle had marked everything."),
    "marking_ns": _counter("By the clock, in which cycles marked.", "marking_seconds"),
}
_COLLECTOR: Table = {
    "cycles": _IN_STATS,
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
_CYCLE: Table = {
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
_PACER: Table = {
    "goal_bytes": _gauge("Heap size at which the next cycle should be done."),
    "trigger_bytes": _gauge("Heap size at which the next cycle begins."),
    "memory_limit_bytes": _gauge("Soft limit of the handle heap; absent without one."),
    "percent": _gauge("Growth between collections; absent while off.", "growth_ratio"),
    "cores": _gauge("Cores that the collector reckons with."),
}
_PRESSURE: Table = {
    "level": _gauge("How short memory is: 0 calm, 1 evict, 2 refuse, 3 release, 4 end guests."),
    "limit_bytes": _gauge("What the process may have resident; absent without a limit."),
    "samples": _counter("Looks at the memory."),
    "transitions": _counter("Changes of the level."),
    "seconds_at": _counter("Time at each level.", "level_seconds"),
    "actions": _counter("Actions carried out."),
    "failures": _counter("Signals and actions that raised."),
    "guests_ended": _counter("Guests ended for their memory."),
    "scavenged_bytes": _counter("Given back by the scavenger."),
    "scavenger_s": _counter("CPU time of the scavenger.", "scavenger_seconds"),
}
_TENANTS: Table = {
    "memory_bytes": _gauge("Committed in regions and stacks of the tenant's guests."),
    "memory_peak_bytes": _gauge('Most that it ever was; of "other", at most.'),
    "memory_limit": _gauge("The tenant's quota of it; absent without one.", "memory_limit_bytes"),
    "handles": _gauge("Handles of the tenant's guests."),
    "handles_limit": _gauge("The tenant's quota of them; absent without one."),
    "handle_bytes": _gauge("What these handles count for."),
    "guests_live": _gauge("Guests of the tenant that are alive."),
    "guests_peak": _gauge('Most that ever were; of "other", at most.'),
    "guests_limit": _gauge("The tenant's quota of them; absent without one."),
    "spawns": _counter("Guests started for the tenant."),
    "calls": _counter("Calls of its guests that have ended."),
    "cpu_ns": _counter("CPU time of its calls, where it has a quota of it.", "cpu_seconds"),
    "refusals": _counter("Guests and calls refused by a quota in a time, or under pressure."),
}
_PLUGINS: Table = {
    "guests_live": _gauge("Guests of the plugin that are alive."),
    "spawns": _counter("Guests started of the plugin."),
    "calls": _counter("Calls of its guests that have ended."),
    "host_calls": _counter("Calls of host functions by its guests that have ended."),
    "traps": _counter("Calls of its guests that trapped."),
    "image_bytes": _gauge("Initial data, shared by all of its guests."),
}

TABLES: Mapping[str, Table] = {
    "stats": _STATS,
    "workers": _WORKERS,
    "heap": _HEAP,
    "collector": _COLLECTOR,
    "cycle": _CYCLE,
    "pacer": _PACER,
    "pressure": _PRESSURE,
    "tenants": _TENANTS,
    "plugins": _PLUGINS,
}
"""By part of a reading, by field."""
