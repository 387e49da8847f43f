"""Every figure there is, once: its name, kind, unit and help, and where a reading has it.

tables.py ─┐
Reading ───┴─► FIGURES ──► metrics.py: Prometheus
                      └──► otel.py: OpenTelemetry
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .reading import Reading
from .tables import TABLES, Entry, Kind

__all__ = ["FIGURES", "Figure"]

_UNITS = ("bytes", "seconds", "ratio")

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
        """Return what it is in, a base unit; "" of what is counted."""
        end = self.name.rpartition("_")[2]
        return end if end in _UNITS else ""


_PREFIXES = {
    "stats": "",
    "workers": "workers_",
    "heap": "handles_",
    "collector": "gc_",
    "cycle": "gc_last_",
    "pacer": "gc_",
    "pressure": "pressure_",
    "tenants": "tenant_",
    "plugins": "plugin_",
}
_SCALES = {"_ns": 1e-9, "_us": 1e-6, "percent": 0.01}
_NO_GOAL = 2**64 - 1
_PHASES = ("idle", "marking", "sweeping")


def _figure(part: str, field: str, entry: Entry) -> Figure:
    scale = next((by for end, by in _SCALES.items() if field.endswith(end)), 1)

    def scaled(value: float | None) -> Iterable[float]:
        if value is not None and value != _NO_GOAL:
            yield value * scale if scale != 1 else value

    def single(reading: Reading) -> Values:
        of = getattr(reading, part)
        for value in scaled(None if of is None else getattr(of, field)):
            yield (), value

    def of_each(reading: Reading) -> Values:
        for name, row in getattr(reading, part).items():
            for value in scaled(row[field]):
                yield (name,), value

    name = _PREFIXES[part] + (entry.name or field)
    labels, values = _LABELLED.get(field, ((), single))
    if part in ("tenants", "plugins"):
        labels, values = (part[:-1],), of_each
    return Figure(name, entry.kind, entry.help, labels, values)


def _items(part: str, field: str) -> Callable[[Reading], Values]:
    """Return what reads a field that is a dict: a value for each key."""

    def values(reading: Reading) -> Values:
        of = getattr(reading, part)
        if of is not None:
            for key, value in getattr(of, field).items():
                yield (key,), value

    return values


def _phases(reading: Reading) -> Values:
    if reading.heap is not None:
        for phase in _PHASES:
            yield (phase,), int(reading.heap.phase == phase)


def _latencies(reading: Reading) -> Values:
    for operation, latency in reading.latencies.items():
        yield (operation,), latency


_LABELLED: dict[str, tuple[tuple[str, ...], Callable[[Reading], Values]]] = {
    "by_reason": (("reason",), _items("collector", "by_reason")),
    "seconds_at": (("level",), _items("pressure", "seconds_at")),
    "actions": (("action",), _items("pressure", "actions")),
    "phase": (("phase",), _phases),
}

FIGURES: tuple[Figure, ...] = (
    *(
        _figure(part, field, entry)
        for part, table in TABLES.items()
        for field, entry in table.items()
        if entry is not None
    ),
    Figure(
        "latency_seconds",
        "histogram",
        "How long spawns, calls and closes took; sums are within 1/64.",
        ("operation",),
        _latencies,
    ),
)
