"""What a picture of a host is made of: records, as JSON has them too.

View ─┬─ Process
      ├─ TenantView *, PluginView *, GuestView *
      ├─ SlotMap
      ├─ PressureView ─── OpinionView *, Change *, EndedView *
      └─ CollectorView ── CycleView *
"""

from __future__ import annotations

from typing import NamedTuple

from ..govern.stats import Latency, MemStats

__all__ = [
    "OPERATIONS",
    "VERSION",
    "Change",
    "CollectorView",
    "CycleView",
    "EndedView",
    "GuestView",
    "OpinionView",
    "PluginView",
    "PressureView",
    "Process",
    "SlotMap",
    "TenantView",
    "View",
]

VERSION = 1
OPERATIONS = ("spawn", "call", "close")


class Process(NamedTuple):
    """Whose host it is."""

    pid: int
    program: str
    """The last part of its first argument."""
    sandhost: str
    python: str
    cores: int


class TenantView(NamedTuple):
    """What one tenant holds; see `TenantStats`."""

    name: str | None
    """None: all guests that belong to no tenant, together. Its counters are not known: 0."""
    memory_bytes: int
    memory_peak_bytes: int
    memory_limit: int | None
    resident_bytes: int
    """Private pages of its guests' memories, by the kernel."""
    share_bytes: int | None
    """What it may hold while all want more than there is; None: there is no limit to share."""
    weight: float
    guests: int
    handles: int
    handle_bytes: int
    spawns: int
    calls: int
    cpu_ns: int
    refusals: int

    @property
    def held_bytes(self) -> int:
        """All that a share is held against."""
        return self.memory_bytes + self.handle_bytes


class PluginView(NamedTuple):
    """One plugin, all its guests together."""

    name: str
    memory_bytes: int
    resident_bytes: int
    guests: int
    spawns: int
    calls: int
    """Of guests that have ended, as the next."""
    host_calls: int
    traps: int
    image_bytes: int


class GuestView(NamedTuple):
    """A guest; see `GuestRow`."""

    id: int
    plugin: str
    tenant: str | None
    memory_bytes: int
    resident_bytes: int
    handles: int
    handle_bytes: int
    age_ns: int
    calls: int
    node: int
    doing: str


class SlotMap(NamedTuple):
    """The heat map: slots in the order of their addresses, some to a cell where they are many."""

    slots: int
    """That were used at least once."""
    per_cell: int
    counts: dict[str, int]
    """Slots by state; see `SlotRow.state`."""
    resident: dict[str, int]
    """Their private pages, in bytes, by state."""
    states: tuple[str, ...]
    """Of each cell, as the next."""
    resident_bytes: tuple[int, ...]
    committed_bytes: tuple[int, ...]
    owners: tuple[int, ...]
    """An index into `names`; -1: nobody's, or of several."""
    names: tuple[tuple[str, str | None], ...]
    """Plugin and tenant."""


class OpinionView(NamedTuple):
    """What one signal said at the controller's last look."""

    signal: str
    asks: str
    holds: str
    why: str


class Change(NamedTuple):
    """The level of pressure has changed."""

    ago_s: float
    before: str
    after: str
    why: str


class EndedView(NamedTuple):
    """A guest that was ended for its memory."""

    guest: int
    plugin: str
    tenant: str | None
    held_bytes: int
    tenant_bytes: int
    share_bytes: int


class PressureView(NamedTuple):
    """What watches the process's memory."""

    level: str
    limit_bytes: int | None
    samples: int
    """0: it does not watch."""
    seconds_at: dict[str, float]
    actions: dict[str, int]
    guests_ended: int
    scavenged_bytes: int
    opinions: tuple[OpinionView, ...]
    changes: tuple[Change, ...]
    """The last ones, oldest first."""
    ended: tuple[EndedView, ...]


class CycleView(NamedTuple):
    """A cycle of the collector that has ended; see `Cycle`."""

    number: int
    reason: str
    began_s: float
    """Since the collector was made."""
    begin_s: float
    mark_s: float
    sweep_s: float
    live_before_bytes: int
    peak_bytes: int
    live_after_bytes: int
    goal_bytes: int
    utilization: float
    finalizers: int

    @property
    def duration_s(self) -> float:
        """Wall clock of all of it."""
        return self.begin_s + self.mark_s + self.sweep_s


class CollectorView(NamedTuple):
    """The collector of the handle heap."""

    phase: str
    percent: float | None
    limit_bytes: int | None
    live_bytes: int
    marked_bytes: int
    goal_bytes: int | None
    """None: nothing makes it collect but the limit, and that is far."""
    cycles: int
    by_reason: dict[str, int]
    forced_calls: int
    pauses: int
    swept_bytes: int
    finalizers: int
    collecting_s: float
    longest_stop_ns: int
    history: tuple[CycleView, ...]
    """The last ones, oldest first."""


class View(NamedTuple):
    """All that is shown of a host."""

    version: int
    taken_s: float
    """Unix time."""
    process: Process
    figures: MemStats
    tenants: tuple[TenantView, ...]
    """Those that hold most first, 1,000 at the most."""
    tenants_in_all: int
    plugins: tuple[PluginView, ...]
    plugins_in_all: int
    guests: tuple[GuestView, ...]
    """The 100 largest."""
    doing: dict[str, int]
    """Guests that are "idle", "running" and "waiting"."""
    slots: SlotMap
    pressure: PressureView | None
    """None: nobody has asked for it yet, as the next."""
    collector: CollectorView | None
    latency: dict[str, Latency]
    """Of "spawn", "call" and "close"."""
