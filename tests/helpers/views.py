"""Views of hosts that never were: of any number of tenants, by any names."""

from __future__ import annotations

from collections.abc import Sequence

from sandhost.govern.slots import STATES, SlotRow
from sandhost.govern.stats import Latency, MemStats
from sandhost.observe.picture import slot_map
from sandhost.observe.views import (
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
    TenantView,
    View,
)

__all__ = ["HOSTILE_NAMES", "made_view"]

MIB = 1 << 20
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b]0;owned\x07\x1b[2J\x1b[31m",
    "\u202egnp.exe",
    "a\nb\r\tc\x00d\x9b31m",
    "x" * 10_000,
    "漢字" * 200,
    "\ud800 half of a character",
    "&amp;&lt;",
    "",
    "[bold red]markup[/] [/nothing]",
    "%s {0} {{",
)


def made_view(
    names: Sequence[str] = ("acme", "globex"), *, slots: int = 100, refusals: int = 3
) -> View:
    """Return a view with a tenant, a plugin and a guest by each of these names."""
    states = list(STATES.values())
    rows = [
        SlotRow(
            states[at % len(states)],
            MIB,
            at * 4096 % MIB,
            at,
            names[at % len(names)] if names else "p",
            names[at % len(names)] if names else None,
            0,
        )
        for at in range(slots)
    ]
    figures = MemStats(*(at * 1000 for at, _ in enumerate(MemStats._fields)))._replace(
        memory_limit=None, process_rss_bytes=100 * MIB, handle_goal_bytes=2**64 - 1
    )
    cycle = CycleView(1, "heap goal", 0.5, 1e-4, 2e-3, 1e-4, 4 * MIB, 5 * MIB, MIB, 6 * MIB, 0.2, 3)
    tenants = [
        TenantView(name, (at + 1) * MIB, 2 * MIB, None, MIB, MIB, 1.0, at, 2 * at, 10, 20, 30, 40, refusals)
        for at, name in enumerate([*names, None])
    ]  # fmt: skip
    return View(
        VERSION,
        1.7e9,
        Process(4242, names[0] if names else "app.py", "1.0", "3.11", 2),
        figures,
        tuple(tenants),
        len(tenants),
        tuple(PluginView(name, MIB, MIB, 1, 2, 3, 4, 5, 6) for name in names),
        len(names),
        tuple(
            GuestView(at, name, name, MIB, MIB, 0, 0, 10**9, 5, 0, "idle")
            for at, name in enumerate(names)
        ),
        {"idle": len(names), "running": 0, "waiting": 0},
        slot_map(rows),
        PressureView(
            "refuse", 200 * MIB, 10, {"calm": 5.0, "refuse": 2.5}, {"evict": 3}, 1, 0,
            tuple(OpinionView(name, "calm", "evict", name) for name in names),
            (Change(9.5, "calm", "evict", "x"), Change(3.0, "evict", "refuse", "".join(names))),
            tuple(EndedView(7, name, name, MIB, 2 * MIB, MIB) for name in names),
        ),
        CollectorView(
            "idle", 100.0, None, MIB, MIB, 4 * MIB, 7, {"heap goal": 7}, 1, 0, 10, 3, 0.1, 1000,
            tuple(cycle._replace(number=at) for at in range(30)),
        ),
        {
            name: Latency(1001, 2_000_000, ((1000, 500), (20_000, 500), (2_000_000, 1)))
            for name in ("spawn", "call", "close")
        },
    )  # fmt: skip
