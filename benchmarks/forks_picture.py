"""The drawing of forks.py: time from nothing to done, and memory of each live sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drawing import (
    GOOD,
    INK,
    names_downwards,
    on_what,
    one_run,
    page,
    tidy_lying,
    words_behind,
)

from sandhost.bench.picture import log_microseconds

_OURS, _JAVASCRIPT, _PYTHON = GOOD, "#e07a5f", "#6d6875"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture; slowest at the bottom."""
    rows = [one for one in data["contenders"] if "us" in one]
    absent = [one for one in data["contenders"] if "us" not in one]
    rows.sort(key=lambda one: one["us"]["total"]["p50"])
    headline = f"A sandbox from nothing to done, {one_run(data)}, all in turn"
    small = on_what(data["machine"], "sandhost")
    small += "".join(f"\nnot measured: {one['title']}: {one['unavailable']}" for one in absent)
    with page(path, (14, 1.9 + 0.52 * len(rows)), headline, small) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.75, 1))
        _times(left, rows, data)
        _memory(right, rows)


def _colour(row: dict[str, Any]) -> str:
    if row["title"].startswith("sandhost"):
        return _OURS
    return _JAVASCRIPT if row["language"] == "JavaScript" else _PYTHON


def _times(axes: Any, rows: list[dict[str, Any]], data: dict[str, Any]) -> None:
    reference = next((r for r in rows if r["name"] == data["reference"]), None)
    for y, row in enumerate(rows):
        us = row["us"]
        total = us["total"]
        axes.barh(y, total["p50"], left=0.01, height=0.6, color=_colour(row))
        axes.plot([total["p50"], total["p99"]], [y, y], color=_colour(row), linewidth=1.4)
        ratio = total["p50"] / reference["us"]["total"]["p50"] if reference else 0
        of = f"   {ratio:,.0f}×" if ratio >= 2 else ""
        parts = " + ".join(_short(us[step]["p50"]) for step in ("create", "run", "close"))
        words_behind(axes, total["p99"], y, f"{_short(total['p50'])}{of}   ({parts})")
    axes.axvline(data["to_reach_us"], color=INK, linewidth=0.9, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(10, max(row["us"]["total"]["p99"] for row in rows) * 300)
    log_microseconds(axes.xaxis)
    names_downwards(axes, [f"{row['title']}\n{row['language']}" for row in rows], 8)
    axes.set_title(
        "create or fork, first evaluation, close: median of the three together, line to p99"
    )
    tidy_lying(axes)


def _memory(axes: Any, rows: list[dict[str, Any]]) -> None:
    largest = 0.1
    for y, row in enumerate(rows):
        each = row["live"].get("pss_bytes_each")
        if each is None:
            text = row["live"]["note"]
        else:
            mib = each / 2**20
            largest = max(largest, mib)
            axes.barh(y, mib, left=0.001, height=0.6, color=_colour(row))
            text = f"{mib:,.3g} MiB"
        if row["live"].get("count", 100) < 100:
            text += f"   ({row['live']['count']:.0f} alive)"
        at = 0.01 if each is None else each / 2**20
        words_behind(axes, at, y, text)
    axes.set_xscale("log")
    axes.set_xlim(0.01, largest * 60)
    axes.set_xlabel("MiB (proportional set size)")
    axes.set_title("memory of each live one")
    tidy_lying(axes)


def _short(us: float) -> str:
    for scale, unit in ((1, "µs"), (1e3, "ms"), (1e6, "s")):
        if us < scale * 999 or unit == "s":
            break
    return f"{us / scale:.2g} {unit}" if us < scale * 99 else f"{us / scale:.0f} {unit}"
