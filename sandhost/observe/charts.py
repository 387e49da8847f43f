"""The drawings of a report, as SVG without a style of their own: colours are classes of report.css."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ..errors import printable
from ..govern.stats import Latency
from ..units import format_bytes, format_ns
from .views import Change, CycleView, SlotMap

__all__ = ["LEVELS", "cycles", "heat", "heat_map", "histogram", "levels", "range_of"]

LEVELS = ("calm", "evict", "refuse", "release", "end")
_COLUMNS, _CELL = 64, 15
_WIDE = 960
_LEFT = 56
_PER_OCTAVE = 4
"""Bars of a histogram in a doubling of the time: fine enough to see two humps 20 % apart."""


def heat(resident_bytes: int) -> float:
    """Return 0.18 to 1 for 4 KiB to 16 MiB and more: each doubling is one step."""
    if resident_bytes <= 0:
        return 0.0
    return 0.18 + 0.82 * min(max(math.log2(resident_bytes / 4096), 0.0) / 12, 1.0)


def heat_map(slots: SlotMap) -> str:
    """Draw slots in the order of their addresses; the darker, the more of one is resident."""
    cells = len(slots.states)
    columns = min(_COLUMNS, max(cells, 1))
    rows = max(1, -(-cells // columns))
    parts = [_open("heat", columns * _CELL, rows * _CELL, "Slots and their resident pages")]
    for at, state in enumerate(slots.states):
        x, y = at % columns * _CELL + 1, at // columns * _CELL + 1
        fill = heat(slots.resident_bytes[at])
        parts.append(
            f'<rect class="s-{escape(state)}" x="{x}" y="{y}" width="13" height="13" rx="2"'
            f' fill-opacity="{fill:.2f}"><title>{escape(_cell_title(slots, at))}</title></rect>'
        )
    return "".join([*parts, "</svg>"])


def _cell_title(slots: SlotMap, at: int) -> str:
    first = at * slots.per_cell
    last = min(first + slots.per_cell, slots.slots) - 1
    which = f"slot {first}" if first == last else f"slots {first} to {last}"
    text = (
        f"{which}, {slots.states[at]}: {format_bytes(slots.resident_bytes[at])} resident of "
        f"{format_bytes(slots.committed_bytes[at])}"
    )
    if slots.owners[at] >= 0:
        plugin, tenant = slots.names[slots.owners[at]]
        text += f", {printable(plugin, 60)}" + (f" for {printable(tenant, 60)}" if tenant else "")
    return text


def range_of(latencies: Sequence[Latency]) -> tuple[int, int]:
    """Return the powers of two of nanoseconds between which all of them lie."""
    values = [value for one in latencies for value, _ in one.buckets]
    if not values:
        return 10, 20
    low, high = math.floor(math.log2(max(min(values), 1))), math.ceil(math.log2(max(values)))
    return low, max(high, low + 1) + 1


def histogram(latency: Latency, low: int, high: int, name: str) -> str:
    """Draw how often an operation took how long, from 2**low to 2**high ns, with p50 and p99."""
    height, base, top = 124, 94, 36
    counts = [0] * ((high - low) * _PER_OCTAVE)
    for value, count in latency.buckets:
        at = int((math.log2(max(value, 1)) - low) * _PER_OCTAVE)
        counts[min(max(at, 0), len(counts) - 1)] += count
    most = max(counts, default=0) or 1
    step = _WIDE / len(counts)
    parts = [_open("histogram", _WIDE, height, f"How long {name} took")]
    for at, count in enumerate(counts):
        if count:
            tall = max(1.5, (base - top) * count / most)
            parts.append(
                f'<rect class="bar" x="{at * step + 0.5:.1f}" y="{base - tall:.1f}" '
                f'width="{max(step - 1, 1):.1f}" height="{tall:.1f}"><title>{count:,}</title></rect>'
            )
    parts.append(f'<line class="axis" x1="0" x2="{_WIDE}" y1="{base}" y2="{base}"/>')
    for decade in range(12):
        x = (math.log2(10**decade) - low) / (high - low) * _WIDE
        if 0 <= x <= _WIDE - 30:
            parts.append(
                f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
                f'<text x="{x:.1f}" y="{base + 18}">{format_ns(10**decade)}</text>'
            )
    for percent in (50, 99):
        value = latency.percentile(percent)
        if value:
            x = min((math.log2(value) - low) / (high - low), 1) * _WIDE
            end = ' text-anchor="end"' if x > _WIDE - 90 else ""
            parts.append(
                f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{base}"/>'
                f'<text class="strong" x="{x + (-4 if end else 4):.1f}" y="{16 if percent == 50 else 30}"{end}>'
                f"p{percent} {format_ns(value)}</text>"
            )
    return "".join([*parts, "</svg>"])


def levels(changes: Sequence[Change], level: str) -> str:
    """Draw the level of pressure over time, the oldest known change on the left, now on the right."""
    height, rows = 132, len(LEVELS)
    span = max((changes[0].ago_s if changes else 1.0) * 1.03, 1e-3)
    wide = _WIDE - _LEFT - 8

    def across(ago_s: float) -> float:
        return _LEFT + wide * (1 - min(ago_s / span, 1))

    def down(name: str) -> float:
        return 8 + (rows - 1 - LEVELS.index(name)) * 24 + 12

    parts = [_open("levels", _WIDE, height + 22, "Level of memory pressure over time")]
    for name in LEVELS:
        y = down(name)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y}" y2="{y}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{name}</text>'
        )
    steps = [(span, changes[0].before if changes else level)]
    steps += [(change.ago_s, change.after) for change in changes]
    for (ago, name), (until, _) in zip(steps, [*steps[1:], (0.0, "")]):
        if name not in LEVELS:
            continue
        x, y = across(ago), down(name)
        parts.append(
            f'<rect class="l-{name}" x="{x:.1f}" y="{y - 5}" '
            f'width="{max(across(until) - x, 1):.1f}" height="10" rx="1.5"/>'
        )
    ticks = ((span, "start"), (span / 2, "middle"), (0.0, "end"))
    for ago, anchor in ticks if changes else ticks[2:]:
        label = "now" if not ago else f"{format_ns(round(ago * 1e9))} ago"
        parts.append(
            f'<text x="{across(ago):.1f}" y="{height + 14}" text-anchor="{anchor}">{label}</text>'
        )
    return "".join([*parts, "</svg>"])


def cycles(history: Sequence[CycleView]) -> str:
    """Draw what was live when each cycle began, and what it left; the tick is the goal."""
    height, base = 168, 138
    most = max(
        (max(c.live_before_bytes, c.peak_bytes, c.live_after_bytes) for c in history), default=0
    )
    most = max(most, max((c.goal_bytes for c in history if c.goal_bytes < 2 * most), default=0), 1)
    wide = _WIDE - _LEFT - 8
    step = wide / max(len(history), 12)

    def tall(size: int) -> float:
        return (base - 10) * size / most

    parts = [_open("cycles", _WIDE, height, "Live bytes before and after each cycle")]
    for share in (0.0, 0.5, 1.0):
        y = base - (base - 10) * share
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{format_bytes(round(most * share))}</text>"
        )
    for at, cycle in enumerate(history):
        x, width = _LEFT + at * step + step * 0.12, step * 0.76
        before = max(cycle.live_before_bytes, cycle.peak_bytes)
        title = (
            f"cycle {cycle.number}, {cycle.reason}: {format_bytes(before)} to "
            f"{format_bytes(cycle.live_after_bytes)} in {format_ns(round(cycle.duration_s * 1e9))}"
        )
        parts.append(
            f"<g><title>{escape(title)}</title>"
            f'<rect class="before" x="{x:.1f}" y="{base - tall(before):.1f}" width="{width:.1f}" '
            f'height="{max(tall(before), 1):.1f}"/>'
            f'<rect class="after" x="{x:.1f}" y="{base - tall(cycle.live_after_bytes):.1f}" '
            f'width="{width:.1f}" height="{max(tall(cycle.live_after_bytes), 1):.1f}"/>'
        )
        if 0 < cycle.goal_bytes <= most:
            y = base - tall(cycle.goal_bytes)
            parts.append(
                f'<line class="goal" x1="{x - 1:.1f}" x2="{x + width + 1:.1f}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append("</g>")
        if len(history) <= 20 or at % 10 == 0 or at == len(history) - 1:
            parts.append(
                f'<text x="{x + width / 2:.1f}" y="{base + 18}" text-anchor="middle">'
                f"{cycle.number}</text>"
            )
    return "".join([*parts, "</svg>"])


def _open(name: str, width: float, height: float, title: str) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">'
    )
