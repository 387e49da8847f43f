"""A view of a host as lines of a terminal, of any size from 80 × 24 on. Pure: views in, texts out.

sandhost top · app.py 4242                        refuse  103 guests  19:02:35
resident  ███████████████████▌░░░░   152 MiB of 188 MiB  81 %   ▂▃▅▇▇▆
committed ███░░░░░░░░░░░░░░░░░░░░░   109 MiB of 1 GiB    11 %
spawn 210/s  p50 20 µs  p99 0.2 ms   call …   close …
collector idle  158 cycles …
slots, one character each: what it is, and how much of it is resident
tenants, plugins: as many as there is room for
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ..errors import printable
from ..observe.charts import heat
from ..observe.views import OPERATIONS, PluginView, SlotMap, TenantView, View
from ..units import format_bytes, format_ns

__all__ = ["LEAST_COLUMNS", "LEAST_LINES", "SORTS", "frame"]

LEAST_COLUMNS, LEAST_LINES = 80, 24
_WIDE_COLUMNS = 110
_NAME_COLUMNS = 48
SORTS = {"m": "memory", "g": "guests", "h": "handles"}
_LEVELS = {
    "calm": "green",
    "evict": "yellow",
    "refuse": "dark_orange",
    "release": "bold dark_orange",
    "end": "bold red",
}
_LIVE = "░▒▓█"
_OTHERS = {
    "warm": ("o", "yellow"),
    "stale": ("s", "yellow dim"),
    "queued": ("q", "magenta"),
    "quarantined": ("X", "bold red"),
    "cold": ("·", "dim"),
}
_WEIGHT = ("quarantined", "live", "queued", "stale", "warm", "cold")
_BARS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_BAR_COLUMNS, _TREND_COLUMNS = 26, 18


def frame(
    view: View,
    before: View | None = None,
    *,
    columns: int = LEAST_COLUMNS,
    lines: int = LEAST_LINES,
    sort: str = "m",
    trend: Sequence[int] = (),
    help_line: str = "",
) -> list[Text]:
    """Return the lines of one frame, none longer than `columns`, no more than `lines`.

    Args:
        before: an earlier view, for what happened in a second.
        sort: "m", "g" or "h"; see SORTS.
        trend: resident bytes of the process at earlier frames.
    """
    columns, lines = max(columns, LEAST_COLUMNS), max(lines, LEAST_LINES)
    out = [
        _title(view, columns),
        _resident(view, columns, trend),
        _committed(view),
        _operations(view, before, columns),
        _counters(view, before),
        _collector(view, columns),
    ]
    # Two headings with an empty line before each, a legend, and the line of keys are the rest.
    room = lines - len(out) - 6 - bool(help_line)
    slots = _slots(view.slots, columns, max(2, room // 4))
    room -= len(slots) - 1
    plugins = min(len(view.plugins), max(2, room // 3))
    tenants = min(len(view.tenants), room - plugins)
    plugins = min(len(view.plugins), room - tenants)
    out += [Text(), *slots, Text(), *_tenants(view, before, columns, tenants, sort)]
    out += [Text(), *_plugins(view, before, columns, plugins, sort)]
    if help_line:
        out += [Text() for _ in range(lines - 1 - len(out))] + [Text(help_line, "dim")]
    for text in out:
        text.no_wrap = True
        text.rstrip()
        text.truncate(columns, overflow="ellipsis")
    return out[:lines]


# ---- pieces ----


def _size(size: int | None) -> str:
    return "–" if size is None else format_bytes(size) if size else "0"


def _count(count: float) -> str:
    """Return a count in five characters or so: 1,234, 56.7k, 8.9M."""
    for limit, scale, unit in ((10_000, 1, ""), (1_000_000, 1_000, "k"), (10**9, 10**6, "M")):
        if count < limit:
            return f"{count:,.0f}" if scale == 1 else f"{count / scale:.1f}{unit}"
    return f"{count / 10**9:.1f}G"


def _bar(share: float, columns: int) -> str:
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(columns, "░")


def _trend(values: Sequence[int], columns: int) -> str:
    values = values[-columns:]
    low, high = min(values), max(values)
    span = max(high - low, high // 50, 1)
    return "".join(_BARS[1 + (value - low) * 7 // span] for value in values)


class _Rate:
    """What happened in a second between two views; None of one."""

    def __init__(self, view: View, before: View | None) -> None:
        self.seconds = view.taken_s - before.taken_s if before is not None else 0.0

    def __call__(self, now: int, then: int) -> str:
        return f"{_count(max(0, now - then) / self.seconds)}/s" if self.seconds > 0 else "–"


# ---- the head ----


def _title(view: View, columns: int) -> Text:
    level = view.pressure.level if view.pressure is not None else ""
    right = Text()
    if level:
        right.append(f"● {printable(level, 12)}", _LEVELS.get(level, "red"))
    right.append(f"  {view.figures.guests_live:,} guests")
    right.append(time.strftime("  %H:%M:%S", time.localtime(view.taken_s)), "dim")
    left = Text("sandhost top", "bold")
    name = printable(view.process.program, 60)
    room = (
        columns - cell_len(left.plain) - cell_len(right.plain) - 4 - len(str(view.process.pid)) - 1
    )
    left.append(f" · {_fit(name, max(room, 4)).rstrip()} {view.process.pid}", "dim")
    left.append(" " * (columns - cell_len(left.plain) - cell_len(right.plain)))
    return left.append_text(right)


def _resident(view: View, columns: int, trend: Sequence[int]) -> Text:
    limit = view.pressure.limit_bytes if view.pressure is not None else None
    level = view.pressure.level if view.pressure is not None else "calm"
    line = _used("resident", view.figures.process_rss_bytes, limit, _LEVELS.get(level, "red"))
    room = min(columns - cell_len(line.plain) - 3, _TREND_COLUMNS + (columns - LEAST_COLUMNS) // 2)
    if len(trend) > 1 and room > 3:
        line.append(f"   {_trend(trend, room)}", "dim")
    return line


def _committed(view: View) -> Text:
    return _used("committed", view.figures.committed_bytes, view.figures.memory_limit, "blue")


def _used(what: str, size: int | None, limit: int | None, style: str) -> Text:
    line = Text(f"{what:10}")
    if size is None:
        return line.append("–")
    if not limit:
        return line.append("░" * _BAR_COLUMNS, "dim").append(
            f" {format_bytes(size):>8} without limit"
        )
    bar = _bar(size / limit, _BAR_COLUMNS)
    filled = len(bar.rstrip("░"))
    line.append(bar[:filled], style).append(bar[filled:], "dim")
    line.append(f" {format_bytes(size):>8}", "bold")
    return line.append(f" of {format_bytes(limit)}").append(f" {100 * size / limit:3.0f} %", "dim")


def _operations(view: View, before: View | None, columns: int) -> Text:
    rate, line = _Rate(view, before), Text()
    for name in OPERATIONS:
        latency = view.latency.get(name)
        if latency is None:
            continue
        then = before.latency[name].total if before is not None and name in before.latency else 0
        line.append(f"{name} ", "dim").append(f"{rate(latency.total, then):>6} ", "bold")
        for percent in (50, 99) if columns >= _WIDE_COLUMNS else (99,):
            taken = format_ns(latency.percentile(percent)) if latency.total else "–"
            line.append(f"p{percent} ", "dim").append(f"{taken:10}")
    return line


def _counters(view: View, before: View | None) -> Text:
    figures, rate = view.figures, _Rate(view, before)
    line = Text()
    refused = _refused(view)
    for name, count, bad in (
        ("refused", f"{_count(refused)}", refused),
        ("", f"{rate(refused, _refused(before) if before is not None else 0):>6}", 0),
        ("traps", _count(figures.traps), figures.traps),
        ("deadlines", _count(figures.deadlines), figures.deadlines),
        ("evicted", _count(figures.evictions), figures.evictions),
        ("quarantined", _count(figures.quarantined_slots), figures.quarantined_slots),
    ):
        line.append(f"{name} " if name else "", "dim")
        line.append(f"{count}  ", "red" if bad and name == "quarantined" else "bold" if bad else "")
    return line


def _refused(view: View) -> int:
    figures = view.figures
    return figures.memory_refusals + figures.quota_refusals + figures.pressure_refusals


def _collector(view: View, columns: int) -> Text:
    line, collector = Text(), view.collector
    line.append("handles ", "dim").append(_count(view.figures.handles), "bold")
    if collector is None:
        return line
    goal = (
        "no goal" if collector.goal_bytes is None else f"goal {format_bytes(collector.goal_bytes)}"
    )
    line.append(f"  {format_bytes(collector.live_bytes)} live, {goal}")
    line.append("  collector ", "dim").append(printable(collector.phase, 10))
    line.append(f", {_count(collector.cycles)} cycles")
    if collector.history:
        last = collector.history[-1]
        line.append(f", last {format_ns(round(last.duration_s * 1e9))}")
        if columns >= _WIDE_COLUMNS:
            line.append(f" ({printable(last.reason, 20)})", "dim")
    return line


# ---- slots ----


def _slots(slots: SlotMap, columns: int, most_lines: int) -> list[Text]:
    legend = Text("slots ", "bold")
    for state in ("live", *_OTHERS):
        count = slots.counts.get(state, 0)
        if not count and state not in ("live", "cold"):
            continue
        sign, style = _OTHERS.get(state, ("█", "blue"))
        legend.append(f" {sign} ", style).append(f"{state} {count:,}")
        if slots.resident.get(state):
            legend.append(f" {format_bytes(slots.resident[state])}", "dim")
        legend.append(" ")
    cells = len(slots.states)
    each = max(1, -(-cells // (columns * most_lines)))
    if each * slots.per_cell > 1:
        legend.append(f" {each * slots.per_cell} slots a sign", "dim")
    out, line = [legend], Text()
    for at in range(0, cells, each):
        states = slots.states[at : at + each]
        state = next((s for s in _WEIGHT if s in states), "cold")
        if state == "live":
            resident = max(slots.resident_bytes[at : at + each]) // slots.per_cell
            line.append(_LIVE[min(int(heat(resident) * 4), 3)], "blue")
        else:
            line.append(*_OTHERS[state])
        if len(line) == columns:
            out.append(line)
            line = Text()
    return [*out, line] if line.plain else out


# ---- tables ----


class _Column(NamedTuple):
    title: str
    width: int
    from_columns: int = 0
    """Shown on terminals that are at least so wide."""


def _fit(text: str, columns: int) -> str:
    """Return a text of exactly so many columns, with an ellipsis when it was longer."""
    if cell_len(text) <= columns:
        return set_cell_size(text, columns)
    return set_cell_size(text, columns - 1) + "…"


def _row(name: str, values: Sequence[str], shown: Sequence[_Column], columns: int) -> str:
    room = min(columns - sum(column.width for column in shown), _NAME_COLUMNS)
    return _fit(name, room) + "".join(
        f"{value:>{column.width}}" for value, column in zip(values, shown)
    )


def _table(
    title: str,
    all_columns: Sequence[_Column],
    rows: Sequence[tuple[str, Sequence[str], str]],
    left_out: int,
    columns: int,
    sorted_by: str,
) -> list[Text]:
    keep = [at for at, column in enumerate(all_columns) if columns >= column.from_columns]
    shown = [all_columns[at] for at in keep]
    heading = f"{title} ({left_out:,} more)" if left_out > 0 else title
    head = Text(_row(heading, [column.title for column in shown], shown, columns), "bold")
    if sorted_by in head.plain:
        head.highlight_words([sorted_by], "bold underline")
    out = [head]
    for name, values, style in rows:
        out.append(Text(_row(name, [values[at] for at in keep], shown, columns), style))
    return out


_TENANT_COLUMNS = (
    _Column("memory", 10),
    _Column("resident", 10),
    _Column("share", 10),
    _Column("limit", 10, 100),
    _Column("guests", 8),
    _Column("handles", 9),
    _Column("spawns", 9),
    _Column("calls", 9, 110),
    _Column("refused", 9),
)


def _tenants(view: View, before: View | None, columns: int, most: int, sort: str) -> list[Text]:
    keys: dict[str, Callable[[TenantView], int]] = {
        "m": lambda tenant: tenant.held_bytes,
        "g": lambda tenant: tenant.guests,
        "h": lambda tenant: tenant.handles,
    }
    chosen = sorted(view.tenants, key=keys[sort], reverse=True)[:most]
    rate = _Rate(view, before)
    then = {tenant.name: tenant for tenant in before.tenants} if before is not None else {}
    rows = []
    for tenant in chosen:
        earlier = then.get(tenant.name, tenant)
        over = tenant.share_bytes is not None and tenant.held_bytes > tenant.share_bytes
        values = (
            _size(tenant.memory_bytes),
            _size(tenant.resident_bytes),
            _size(tenant.share_bytes),
            _size(tenant.memory_limit),
            _count(tenant.guests),
            _count(tenant.handles),
            rate(tenant.spawns, earlier.spawns),
            _count(tenant.calls),
            _count(tenant.refusals),
        )
        name = "(no tenant)" if tenant.name is None else printable(tenant.name) or "(no name)"
        rows.append((name, values, "dark_orange" if over else ""))
    left_out = view.tenants_in_all - len(chosen)
    return _table("tenant", _TENANT_COLUMNS, rows, left_out, columns, SORTS[sort])


_PLUGIN_COLUMNS = (
    _Column("memory", 10),
    _Column("resident", 10),
    _Column("image", 10),
    _Column("guests", 8),
    _Column("host calls", 12, 100),
    _Column("spawns", 9),
    _Column("calls", 9),
    _Column("traps", 9),
)


def _plugins(view: View, before: View | None, columns: int, most: int, sort: str) -> list[Text]:
    keys: dict[str, Callable[[PluginView], int]] = {
        "m": lambda plugin: plugin.memory_bytes,
        "g": lambda plugin: plugin.guests,
        "h": lambda plugin: plugin.memory_bytes,
    }
    chosen = sorted(view.plugins, key=keys[sort], reverse=True)[:most]
    rate = _Rate(view, before)
    then = {plugin.name: plugin for plugin in before.plugins} if before is not None else {}
    rows = []
    for plugin in chosen:
        earlier = then.get(plugin.name, plugin)
        values = (
            _size(plugin.memory_bytes),
            _size(plugin.resident_bytes),
            _size(plugin.image_bytes),
            _count(plugin.guests),
            _count(plugin.host_calls),
            rate(plugin.spawns, earlier.spawns),
            _count(plugin.calls),
            _count(plugin.traps),
        )
        rows.append((printable(plugin.name) or "(no name)", values, ""))
    left_out = view.plugins_in_all - len(chosen)
    return _table("plugin", _PLUGIN_COLUMNS, rows, left_out, columns, SORTS[sort])
