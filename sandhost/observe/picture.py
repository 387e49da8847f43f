"""One picture of a host, for all that show one: `look(host)` gives a `View`.

    host.stats, tenants, plugins, guests, slots, pressure, gc, latency ──► View ──► sandhost top
                                                                             └───► sandhost report

Looking stops nobody and makes nothing: a host whose handles or pressure nobody has used has none
afterwards. The figures are read one after the other, so that two may be a moment apart. Names are as
the application gave them, hostile ones too, but cut: who shows them escapes them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..govern.census import GuestRow
from ..govern.shares import Holding, shares
from ..govern.slots import SlotRow
from ..govern.stats import MemStats
from .views import (
    OPERATIONS,
    VERSION,
    Change,
    CollectorView,
    CycleView,
    EndedView,
    GuestView,
    OpinionView,
    PluginView,
    PressureView,
    Process,
    SlotMap,
    TenantView,
    View,
)

if TYPE_CHECKING:
    from ..gc.collector import Collector
    from ..gc.trace import Cycle
    from ..govern.pressure import Pressure
    from ..heap import HandleHeap
    from ..host import Host
    from ..tenants import Tenant

__all__ = ["VIEW_PATH", "look", "slot_map", "tenant_view"]

VIEW_PATH = "/debug/sandhost/view"
"""Where a server gives a view as JSON; see http.py."""
_NAME_MOST = 200
_TENANTS_MOST = _PLUGINS_MOST = 1000
_GUESTS_MOST = 100
_CELLS_MOST = 2048
_CYCLES_MOST = 60
_BY_WEIGHT = ("quarantined", "live", "queued", "stale", "warm", "cold")
"""Which state a cell of several slots shows: the first that one of them is in."""

_Item = TypeVar("_Item")


def look(host: Host) -> View:
    """Take a picture of a host. Takes some milliseconds of one thread at thousands of guests."""
    figures, guests, slots = host.stats(), host.guests(), host.slots()
    pages = _Pages(slots)
    tenants = _tenants(host, figures, guests, pages)
    plugins = _plugins(host, guests, pages)
    made = host.handles_and_gc
    largest = sorted(guests, key=lambda row: row.memory_bytes + row.handle_bytes, reverse=True)
    return View(
        version=VERSION,
        taken_s=time.time(),
        process=_process(),
        figures=figures,
        tenants=tuple(tenants[:_TENANTS_MOST]),
        tenants_in_all=len(tenants),
        plugins=tuple(plugins[:_PLUGINS_MOST]),
        plugins_in_all=len(plugins),
        guests=tuple(_guest(row, pages) for row in largest[:_GUESTS_MOST]),
        doing={"idle": 0, "running": 0, "waiting": 0} | Counter(row.doing for row in guests),
        slots=slot_map(slots),
        pressure=None if host.made_pressure is None else _pressure(host.made_pressure),
        collector=None if made is None else _collector(*made),
        latency={operation: host.latency(operation) for operation in OPERATIONS},
    )


def _cut(name: str) -> str:
    return name if len(name) <= _NAME_MOST else f"{name[: _NAME_MOST - 1]}…"


def _cut_or_none(name: str | None) -> str | None:
    return None if name is None else _cut(name)


def _process() -> Process:
    return Process(
        os.getpid(),
        _cut(os.path.basename(sys.argv[0] or "python") if sys.argv else "python"),
        _version(),
        sys.version.split()[0],
        len(os.sched_getaffinity(0)),
    )


@functools.cache
def _version() -> str:
    return importlib.metadata.version("sandhost")


def _all(items: Iterable[_Item]) -> list[_Item]:
    """Return what is in a deque to which other threads add."""
    while True:
        try:
            return list(items)
        except RuntimeError:  # one did, just now
            continue


# ---- who holds what ----


class _Pages:
    """Resident bytes of slots, by who has them."""

    def __init__(self, slots: Sequence[SlotRow]) -> None:
        self.by_guest: Counter[int] = Counter()
        self.by_tenant: Counter[str | None] = Counter()
        self.by_plugin: Counter[str] = Counter()
        for slot in slots:
            if slot.guest and slot.resident_bytes:
                self.by_guest[slot.guest] += slot.resident_bytes
                self.by_tenant[slot.tenant] += slot.resident_bytes
                self.by_plugin[slot.plugin] += slot.resident_bytes


def tenant_view(tenant: Tenant) -> TenantView:
    """Return what a tenant holds by its own counters: without its resident pages, and its share."""
    stats = tenant.stats()
    return TenantView(
        tenant.name,
        stats.memory_bytes,
        stats.memory_peak_bytes,
        tenant.memory_limit,
        0,
        None,
        tenant.weight,
        stats.guests_live,
        stats.handles,
        stats.handle_bytes,
        stats.spawns,
        stats.calls,
        stats.cpu_ns,
        stats.refusals,
    )


def _tenants(
    host: Host, figures: MemStats, guests: Sequence[GuestRow], pages: _Pages
) -> list[TenantView]:
    found = [
        tenant_view(tenant)._replace(resident_bytes=pages.by_tenant[tenant.name])
        for tenant in host.tenants()
    ]
    rest = [row for row in guests if row.tenant is None]
    if rest:
        memory, handles, handle_bytes = (
            sum(row.memory_bytes for row in rest),
            sum(row.handles for row in rest),
            sum(row.handle_bytes for row in rest),
        )
        resident = pages.by_tenant[None]
        found.append(
            TenantView(
                None, memory, memory, None, resident, None, 1.0, len(rest), handles, handle_bytes,
                0, 0, 0, 0,
            )
        )  # fmt: skip
    limit = _shared_limit(host, figures)
    if limit is not None and found:
        holdings = [Holding(one.name, one.weight, one.held_bytes) for one in found]
        found = [
            one._replace(share_bytes=share) for one, share in zip(found, shares(holdings, limit))
        ]
    found = [one._replace(name=_cut_or_none(one.name)) for one in found]
    return sorted(found, key=lambda one: one.held_bytes, reverse=True)


def _shared_limit(host: Host, figures: MemStats) -> int | None:
    pressure = host.made_pressure
    limits = (figures.memory_limit, None if pressure is None else pressure.limit_bytes)
    return min((limit for limit in limits if limit is not None), default=None)


def _plugins(host: Host, guests: Sequence[GuestRow], pages: _Pages) -> list[PluginView]:
    memory: Counter[str] = Counter()
    for row in guests:
        memory[row.plugin] += row.memory_bytes
    found: dict[str, PluginView] = {}
    for plugin in host.plugins():  # one name may be loaded more than once
        stats = plugin.stats()
        one = found.get(plugin.name)
        base = one[3:] if one is not None else (0,) * 6
        counts = (a + b for a, b in zip(base, stats))
        found[plugin.name] = PluginView(
            _cut(plugin.name), memory[plugin.name], pages.by_plugin[plugin.name], *counts
        )
    return sorted(found.values(), key=lambda one: (one.memory_bytes, one.spawns), reverse=True)


def _guest(row: GuestRow, pages: _Pages) -> GuestView:
    return GuestView(
        row.id,
        _cut(row.plugin),
        _cut_or_none(row.tenant),
        row.memory_bytes,
        pages.by_guest[row.id],
        row.handles,
        row.handle_bytes,
        row.age_ns,
        row.calls,
        row.node,
        row.doing,
    )


def slot_map(slots: Sequence[SlotRow], most: int = _CELLS_MOST) -> SlotMap:
    """Make the heat map of slots, of `most` cells at the most."""
    per_cell = max(1, -(-len(slots) // most))
    names: dict[tuple[str, str | None], int] = {}
    states, resident, committed, owners = [], [], [], []
    for at in range(0, len(slots), per_cell):
        cell = slots[at : at + per_cell]
        present = {slot.state for slot in cell}
        states.append(next(state for state in _BY_WEIGHT if state in present))
        resident.append(sum(slot.resident_bytes or 0 for slot in cell))
        committed.append(sum(slot.committed_bytes for slot in cell))
        whose = {
            (_cut(slot.plugin), _cut_or_none(slot.tenant))
            for slot in cell
            if slot.state == "live" and slot.guest
        }
        owners.append(names.setdefault(whose.pop(), len(names)) if len(whose) == 1 else -1)
    by_state: Counter[str] = Counter()
    for slot in slots:
        by_state[slot.state] += slot.resident_bytes or 0
    return SlotMap(
        len(slots),
        per_cell,
        dict(Counter(slot.state for slot in slots)),
        dict(by_state),
        tuple(states),
        tuple(resident),
        tuple(committed),
        tuple(owners),
        tuple(names),
    )


# ---- what governs ----


def _pressure(pressure: Pressure) -> PressureView:
    stats, now_s = pressure.stats(), time.monotonic()
    return PressureView(
        level=stats.level.name.lower(),
        limit_bytes=stats.limit_bytes,
        samples=stats.samples,
        seconds_at=stats.seconds_at,
        actions=stats.actions,
        guests_ended=stats.guests_ended,
        scavenged_bytes=stats.scavenged_bytes,
        opinions=tuple(
            OpinionView(one.signal, one.asks.name.lower(), one.holds.name.lower(), one.why)
            for one in pressure.explain()
        ),
        changes=tuple(
            Change(
                max(0.0, now_s - change.at_s),
                change.before.name.lower(),
                change.after.name.lower(),
                change.why,
            )
            for change in _all(pressure.history)
        ),
        ended=tuple(
            EndedView(
                one.guest,
                _cut(one.plugin),
                _cut_or_none(one.tenant),
                one.held_bytes,
                one.tenant_bytes,
                one.share_bytes,
            )
            for one in _all(pressure.ended)
        ),
    )


def _collector(heap: HandleHeap, collector: Collector) -> CollectorView:
    figures, stats = heap.figures(), collector.stats()
    goal = figures.heap_goal_bytes
    return CollectorView(
        phase=figures.phase,
        percent=collector.percent,
        limit_bytes=collector.memory_limit,
        live_bytes=figures.live_bytes,
        marked_bytes=figures.marked_bytes,
        goal_bytes=goal if goal < 2**62 else None,
        cycles=stats.cycles,
        by_reason=stats.by_reason,
        forced_calls=stats.forced_calls,
        pauses=stats.pauses,
        swept_bytes=stats.swept_bytes,
        finalizers=stats.finalizers,
        collecting_s=stats.collecting_s,
        longest_stop_ns=figures.longest_stop_ns,
        history=tuple(_cycle(cycle) for cycle in _all(collector.history)[-_CYCLES_MOST:]),
    )


def _cycle(cycle: Cycle) -> CycleView:
    return CycleView._make(getattr(cycle, name) for name in CycleView._fields)
