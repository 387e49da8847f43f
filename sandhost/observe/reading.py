"""One reading of a host: each part is read once, when it is first asked for, without any effect.

Whoever keeps a reading does not keep the host.
"""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .names import Folder, Row
from .tables import TABLES

if TYPE_CHECKING:
    from ..gc.collector import Collector, CollectorStats
    from ..gc.pacer import Pacer
    from ..gc.trace import Cycle
    from ..govern.pressure import PressureStats
    from ..govern.stats import Latency, MemStats, WorkerStats
    from ..heap_figures import HeapFigures
    from ..host import Host
    from ..plugin import Plugin
    from ..tenants import Tenant

__all__ = ["OPERATIONS", "Reading"]

OPERATIONS = ("spawn", "call", "close")

Rows = dict[str, dict[str, float | None]]


class Reading:
    """What a host holds and has done. The parts may be a moment apart.

    Args:
        tenants, plugins: fold what has a name under few labels; see names.py.
    """

    def __init__(self, host: Host, tenants: Folder, plugins: Folder) -> None:
        self._ref, self._tenants, self._plugins = weakref.ref(host), tenants, plugins

    @property
    def _host(self) -> Host:
        host = self._ref()
        assert host is not None  # whoever asks has it
        return host

    @cached_property
    def stats(self) -> MemStats:
        """The host's own figures."""
        return self._host.stats()

    @cached_property
    def workers(self) -> WorkerStats:
        """The threads that compute for event loops."""
        return self._host.workers()

    @cached_property
    def latencies(self) -> dict[str, Latency]:
        """How long spawns, calls and closes took."""
        return {operation: self._host.latency(operation) for operation in OPERATIONS}

    # ---- handles: None as long as nobody has any ----

    @cached_property
    def heap(self) -> HeapFigures | None:
        """The handle heap."""
        made = self._host.handles_and_gc
        return None if made is None else made[0].figures()

    @property
    def _collector(self) -> Collector | None:
        made = self._host.handles_and_gc
        return None if made is None else made[1]

    @cached_property
    def collector(self) -> CollectorStats | None:
        """What the collector has done."""
        return None if self._collector is None else self._collector.stats()

    @cached_property
    def cycle(self) -> Cycle | None:
        """The last cycle; None: there was none."""
        return None if self._collector is None else self._collector.last

    @cached_property
    def pacer(self) -> Pacer | None:
        """When the next cycle is to be."""
        return None if self._collector is None else self._collector.pacer

    # ---- pressure: None as long as nobody watches it ----

    @cached_property
    def pressure(self) -> PressureStats | None:
        """What the pressure controller has seen and done."""
        made = self._host.made_pressure
        return None if made is None else made.stats()

    # ---- who has names ----

    @cached_property
    def tenants(self) -> Rows:
        """By label and field: what each holds, its quotas, what it has done."""
        return self._tenants.fold(map(_tenant_row, self._host.tenants()))

    @cached_property
    def plugins(self) -> Rows:
        """By label and field: what each holds and has done."""
        return self._plugins.fold(map(_plugin_row, self._host.plugins()))


def _tenant_row(tenant: Tenant) -> Row:
    stats, quotas = tenant.stats(), tenant.quotas
    values = {
        **stats._asdict(),
        "memory_limit": quotas.memory_limit,
        "handles_limit": quotas.handles,
        "guests_limit": quotas.guests,
    }
    size = (stats.held_bytes, stats.memory_peak_bytes)
    return Row(tenant.name, tenant.name, size, *_by_kind("tenants", values))


def _plugin_row(plugin: Plugin) -> Row:
    stats = plugin.stats()
    size = (stats.spawns, stats.guests_live)
    return Row(weakref.ref(plugin), plugin.name, size, *_by_kind("plugins", stats._asdict()))


def _by_kind(part: str, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    gauges, counters = _FIELDS[part]
    return {field: values[field] for field in gauges}, {field: values[field] for field in counters}


_FIELDS = {
    part: tuple(
        [field for field, entry in TABLES[part].items() if entry is not None and entry.kind == kind]
        for kind in ("gauge", "counter")
    )
    for part in ("tenants", "plugins")
}
