"""A view of a host as one page of HTML that needs nothing else: `render(view)`.

No script, no network: style and drawings are in it. It follows the reader's light or dark, and prints.
Names are shown as `printable` does, between <bdi>, so that none changes what stands beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ..errors import printable
from ..units import format_bytes, format_ns
from . import charts
from .views import OPERATIONS, CollectorView, PressureView, View

__all__ = ["render"]

_ROWS_SHOWN, _GUESTS_SHOWN = 30, 12
_PERCENTILES = (50, 90, 99, 99.9)
_NO_TENANT = "(no tenant)"
_BYTES = ("_bytes", "memory_limit")


def render(view: View) -> str:
    """Return the page."""
    title = f"{printable(view.process.program)} · process {view.process.pid}"
    sections = [
        _tiles(view),
        _memory(view),
        _slots(view),
        _tenants(view),
        _plugins(view),
        _guests(view),
        _latency(view),
        _pressure(view.pressure),
        _collector(view.collector),
        _figures(view),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing may be fetched or run, whatever a name has smuggled in.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)} · sandhost</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{_header(view, title)}\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


# ---- pieces ----


def _header(view: View, title: str) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(view.taken_s))
    level = view.pressure.level if view.pressure is not None else "calm"
    level = level if level in charts.LEVELS else "calm"
    said = f"memory: {level}" if view.pressure is not None else "memory: not watched"
    process = view.process
    about = f"{when} · sandhost {process.sandhost}, Python {process.python}, {process.cores} cores"
    return (
        f"<header><h1><bdi>{escape(title)}</bdi></h1>"
        f'<p class="when">{escape(about)}</p>'
        f'<span class="pill l-{level}">{said}</span></header>'
    )


def _section(title: str, note: str, *parts: str) -> str:
    shown = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section>\n<h2>{escape(title)}</h2>{shown}{''.join(parts)}\n</section>"


def _scrolled(drawing: str) -> str:
    return f'<div class="scroll">{drawing}</div>'


def _name(name: str | None, most: int = 80) -> str:
    text = _NO_TENANT if name is None else printable(name, most) or "(no name)"
    return f'<td class="name"><bdi>{escape(text)}</bdi></td>'


def _number(count: int, *, alarming: bool = False) -> str:
    kind = ' class="over"' if alarming and count else "" if count else ' class="zero"'
    return f"<td{kind}>{count:,}</td>"


def _size(size: int | None, kind: str = "") -> str:
    kind = kind or ("" if size else "zero")
    text = "–" if size is None else format_bytes(size) if size else "0"
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _metered(size: int, of: int) -> str:
    share = min(100.0, 100 * size / of) if of else 0.0
    return (
        f"<td>{format_bytes(size)}"
        f'<span class="meter"><i style="width:{share:.0f}%"></i></span></td>'
    )


def _table(
    headings: Sequence[str],
    rows: Iterable[str],
    text_columns: int = 1,
    shown_rows: int = _ROWS_SHOWN,
) -> str:
    """Lay out a table of rows of cells; what is beyond the first rows is folded."""
    head = "".join(
        f'<th scope="col"{" class=" + chr(34) + "text" + chr(34) if at < text_columns else ""}>'
        f"{escape(heading)}</th>"
        for at, heading in enumerate(headings)
    )
    lines = [f"<tr>{row}</tr>" for row in rows]
    shown, folded = lines[:shown_rows], lines[shown_rows:]

    def block(body: Sequence[str]) -> str:
        return (
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )

    if not folded:
        return block(shown)
    return (
        f"{block(shown)}<details><summary>{len(folded):,} more</summary>{block(folded)}</details>"
    )


# ---- sections ----


def _tiles(view: View) -> str:
    figures = view.figures
    refusals = figures.memory_refusals + figures.quota_refusals + figures.pressure_refusals
    limit = view.pressure.limit_bytes if view.pressure is not None else None
    tiles = [
        ("Guests", f"{figures.guests_live:,}", f"{figures.guests_peak:,} at the peak"),
        (
            "Process, resident",
            "–" if figures.process_rss_bytes is None else format_bytes(figures.process_rss_bytes),
            "no limit" if limit is None else f"of {format_bytes(limit)}",
        ),
        (
            "Committed",
            format_bytes(figures.committed_bytes),
            "no limit"
            if figures.memory_limit is None
            else f"of {format_bytes(figures.memory_limit)}",
        ),
        ("Handles", f"{figures.handles:,}", f"for {format_bytes(figures.handle_bytes)}"),
        ("Spawns", f"{figures.spawns:,}", f"{figures.spawn_failures:,} failed"),
        ("Calls", f"{figures.calls:,}", "of guests that ended"),
        ("Refused", f"{refusals:,}", "by limits, quotas, pressure"),
        ("Given back", format_bytes(figures.returned_bytes), "to the operating system"),
    ]
    return (
        '<section class="tiles">'
        + "".join(
            f"<div><dl><dt>{title}</dt><dd>{value}<small>{small}</small></dd></dl></div>"
            for title, value, small in tiles
        )
        + "</section>"
    )


def _memory(view: View) -> str:
    figures, slots = view.figures, view.slots
    parts = [
        ("live", "guests", slots.resident.get("live", 0)),
        ("warm", "kept warm", slots.resident.get("warm", 0) + figures.stack_warm_bytes),
        ("stale", "left to the kernel", slots.resident.get("stale", 0)),
        ("queued", "on its way back", slots.resident.get("queued", 0)),
    ]
    rss = figures.process_rss_bytes or 0
    parts.append(("rest", "everything else in the process", max(0, rss - sum(p[2] for p in parts))))
    limit = view.pressure.limit_bytes if view.pressure is not None else None
    whole = max(limit or 0, rss, 1)
    bar = "".join(
        f'<i class="s-{kind}" style="width:{100 * size / whole:.2f}%"></i>'
        for kind, _, size in parts
        if size
    )
    key = "".join(
        f'<li><i class="s-{kind}"></i>{what} <b>{format_bytes(size)}</b></li>'
        for kind, what, size in parts
        if size
    )
    against = (
        "" if limit is None else f" The bar's whole length is the limit, {format_bytes(limit)}."
    )
    return _section(
        "Resident memory",
        f"By the kernel's own count of pages.{against}",
        f'<div class="stack">{bar}</div><ul class="key">{key}</ul>',
    )


def _slots(view: View) -> str:
    slots = view.slots
    if not slots.slots:
        return _section("Slots", "No guest has had memory yet.")
    key = "".join(
        f'<li><i class="s-{state}"></i>{state} <b>{slots.counts[state]:,}</b>'
        f"{', ' + format_bytes(slots.resident[state]) if slots.resident.get(state) else ''}</li>"
        for state in ("live", "warm", "stale", "queued", "quarantined", "cold")
        if slots.counts.get(state)
    )
    several = "" if slots.per_cell == 1 else f"; {slots.per_cell} slots a square"
    return _section(
        "Slots",
        f"{slots.slots:,} used so far, in the order of their addresses{several}. "
        "The stronger the colour, the more pages are resident.",
        charts.heat_map(slots),
        f'<ul class="key">{key}</ul>',
    )


def _tenants(view: View) -> str:
    if not view.tenants:
        return _section("Tenants", "None was named, and no guest is alive.")
    most = max(tenant.held_bytes for tenant in view.tenants)
    rows = []
    for tenant in view.tenants:
        over = tenant.share_bytes is not None and tenant.held_bytes > tenant.share_bytes
        share = _size(tenant.share_bytes, "over" if over else "")
        rows.append(
            _name(tenant.name)
            + _metered(tenant.memory_bytes, most)
            + _size(tenant.resident_bytes)
            + _size(tenant.memory_limit)
            + share
            + _number(tenant.guests)
            + _number(tenant.handles)
            + _size(tenant.handle_bytes)
            + _number(tenant.spawns)
            + _number(tenant.calls)
            + _number(tenant.refusals, alarming=True)
        )
    headings = ("tenant", "committed", "resident", "limit", "fair share", "guests", "handles",
                "their objects", "spawns", "calls", "refused")  # fmt: skip
    return _section(
        "Tenants", _left_out(view.tenants_in_all, len(view.tenants)), _table(headings, rows)
    )


def _left_out(count: int, shown: int) -> str:
    return (
        f"{count:,} in all."
        if count == shown
        else f"{count:,} in all, of which {shown:,} are here."
    )


def _plugins(view: View) -> str:
    if not view.plugins:
        return _section("Plugins", "None is loaded.")
    rows = [
        _name(plugin.name)
        + _number(plugin.guests)
        + _size(plugin.memory_bytes)
        + _size(plugin.resident_bytes)
        + _size(plugin.image_bytes)
        + _number(plugin.spawns)
        + _number(plugin.calls)
        + _number(plugin.host_calls)
        + _number(plugin.traps, alarming=True)
        for plugin in view.plugins
    ]
    headings = ("plugin", "guests", "committed", "resident", "image", "spawns", "calls",
                "host calls", "traps")  # fmt: skip
    return _section(
        "Plugins", _left_out(view.plugins_in_all, len(view.plugins)), _table(headings, rows)
    )


def _guests(view: View) -> str:
    if not view.guests:
        return _section("Guests", "None is alive.")
    doing = ", ".join(f"{count:,} {what}" for what, count in view.doing.items() if count)
    rows = [
        f'<td class="text">{guest.id:#x}</td>'
        + _name(guest.plugin, 50)
        + _name(guest.tenant, 50)
        + f'<td class="text">{escape(guest.doing)}</td>'
        + f"<td>{format_ns(guest.age_ns)}</td>"
        + _size(guest.memory_bytes)
        + _size(guest.resident_bytes)
        + _number(guest.handles)
        + _number(guest.calls)
        + f"<td>{guest.node}</td>"
        for guest in view.guests
    ]
    headings = ("guest", "plugin", "tenant", "", "age", "committed", "resident", "handles", "calls",
                "node")  # fmt: skip
    return _section(
        "Largest guests",
        f"Of all: {doing}.",
        _table(headings, rows, text_columns=4, shown_rows=_GUESTS_SHOWN),
    )


def _latency(view: View) -> str:
    known = [view.latency[name] for name in OPERATIONS if name in view.latency]
    low, high = charts.range_of(known)
    rows, drawings = [], []
    for name in OPERATIONS:
        latency = view.latency.get(name)
        if latency is None:
            continue
        if latency.total:
            drawings.append(
                f"<h3>{name}</h3>" + _scrolled(charts.histogram(latency, low, high, name))
            )
        cells = "".join(
            f"<td>{format_ns(latency.percentile(percent)) if latency.total else '–'}</td>"
            for percent in _PERCENTILES
        )
        longest = format_ns(latency.max_ns) if latency.total else "–"
        rows.append(
            f'<td class="text">{name}</td>{cells}<td>{longest}</td>{_number(latency.total)}'
        )
    headings = ("", *(f"p{percent:g}" for percent in _PERCENTILES), "max", "times")
    return _section("Latency", "Since the host was made.", _table(headings, rows), *drawings)


def _pressure(pressure: PressureView | None) -> str:
    if pressure is None or not pressure.samples:
        return _section(
            "Pressure", "Nobody watches the process's memory: see Host(process_limit=...)."
        )
    total_s = sum(pressure.seconds_at.values()) or 1.0
    bar = "".join(
        f'<i class="l-{level}" style="width:{100 * pressure.seconds_at.get(level, 0) / total_s:.2f}%"></i>'
        for level in charts.LEVELS
        if pressure.seconds_at.get(level)
    )
    key = "".join(
        f'<li><i class="l-{level}"></i>{level} <b>{format_ns(round(seconds * 1e9))}</b></li>'
        for level in charts.LEVELS
        if (seconds := pressure.seconds_at.get(level, 0)) > 0
    )
    actions = ", ".join(
        f"{escape(printable(n))} {c:,}×" for n, c in sorted(pressure.actions.items())
    )
    parts = [f'<div class="stack">{bar}</div><ul class="key">{key}</ul>']
    if actions:
        parts.append(f'<p class="note">Done so far: {actions}.</p>')
    parts.append(
        "<h3>Level over time</h3>" + _scrolled(charts.levels(pressure.changes, pressure.level))
    )
    if pressure.opinions:
        rows = [
            f'<td class="text">{escape(printable(one.signal))}</td>'
            f'<td class="text">{escape(one.asks)}</td>'
            f'<td class="why">{escape(printable(one.why, 300))}</td>'
            for one in pressure.opinions
        ]
        parts.append("<h3>What the signals say now</h3>")
        parts.append(_table(("signal", "asks for", "because"), rows, text_columns=3))
    if pressure.changes:
        rows = [
            f"<td>{format_ns(round(change.ago_s * 1e9))} ago</td>"
            f'<td class="text">{escape(change.before)} → {escape(change.after)}</td>'
            f'<td class="why">{escape(printable(change.why, 300))}</td>'
            for change in reversed(pressure.changes[-12:])
        ]
        parts.append(
            "<h3>Last changes</h3>" + _table(("when", "level", "because"), rows, text_columns=3)
        )
    if pressure.ended:
        rows = [
            f'<td class="text">{one.guest:#x}</td>{_name(one.plugin, 50)}{_name(one.tenant, 50)}'
            f"{_size(one.held_bytes)}{_size(one.tenant_bytes)}{_size(one.share_bytes)}"
            for one in reversed(pressure.ended)
        ]
        headings = ("guest", "plugin", "tenant", "held", "its tenant held", "whose share was")
        parts.append(
            "<h3>Guests ended for their memory</h3>" + _table(headings, rows, text_columns=3)
        )
    limit = (
        "no limit of the process"
        if pressure.limit_bytes is None
        else (f"{format_bytes(pressure.limit_bytes)} for the process")
    )
    note = f"Limit: {limit}. {pressure.guests_ended:,} guests ended for their memory."
    return _section("Pressure", note, *parts)


def _collector(collector: CollectorView | None) -> str:
    if collector is None:
        return _section("Collector", "No handle was ever given.")
    goal = (
        "no goal" if collector.goal_bytes is None else f"goal {format_bytes(collector.goal_bytes)}"
    )
    percent = "off" if collector.percent is None else f"{collector.percent:g} %"
    reasons = ", ".join(
        f"{escape(printable(reason))} {count:,}"
        for reason, count in sorted(collector.by_reason.items())
    )
    note = (
        f"{format_bytes(collector.live_bytes)} live, {goal}, percent {percent}, "
        f"{collector.phase}. {collector.cycles:,} cycles so far; longest stop "
        f"{format_ns(collector.longest_stop_ns)}."
    )
    parts = [f'<p class="note">Cycles by reason: {reasons}.</p>'] if reasons else []
    if collector.history:
        parts.append(_scrolled(charts.cycles(collector.history)))
        parts.append(
            '<ul class="key"><li><i class="before" style="opacity:.28"></i>live when it began, or at '
            'its peak</li><li><i class="after"></i>live after it</li>'
            '<li><i class="goal"></i>goal</li></ul>'
        )
        rows = [
            f'<td class="text">{cycle.number}</td><td class="text">{escape(printable(cycle.reason))}</td>'
            f"<td>{cycle.began_s:,.1f} s</td><td>{format_ns(round(cycle.duration_s * 1e9))}</td>"
            f"{_size(cycle.live_before_bytes)}{_size(cycle.peak_bytes)}{_size(cycle.live_after_bytes)}"
            f"{_size(cycle.goal_bytes if cycle.goal_bytes < 2**62 else None)}"
            f"<td>{100 * cycle.utilization:.0f} %</td>{_number(cycle.finalizers)}"
            for cycle in reversed(collector.history[-12:])
        ]
        headings = ("cycle", "reason", "began", "took", "before", "peak", "after", "goal", "cores",
                    "finalizers")  # fmt: skip
        parts.append(_table(headings, rows, text_columns=2))
    return _section("Collector", note, *parts)


def _figures(view: View) -> str:
    lines = []
    for name, value in view.figures._asdict().items():
        if not isinstance(value, (int, type(None))):
            continue
        if value is None:
            text = "–"
        elif name.endswith(_BYTES):
            text = format_bytes(value) if value < 2**62 else "none"
        else:
            text = f"{value:,}"
        lines.append(f"<div><dt>{name.replace('_', ' ')}</dt><dd>{text}</dd></div>")
    return _section(
        "All figures",
        "",
        f'<details><summary>{len(lines)} of them</summary><dl class="figures">{"".join(lines)}</dl></details>',
    )
