"""The drawing of forks.py: time from nothing to done, and memory of each live sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sandhost.bench.picture import STYLE, log_microseconds, tidy

_OURS, _JAVASCRIPT, _PYTHON = "#17b978", "#e07a5f", "#6d6875"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture; slowest at the bottom."""
    rows = [one for one in data["contenders"] if "us" in one]
    absent = [one for one in data["contenders"] if "us" not in one]
    rows.sort(key=lambda one: one["us"]["total"]["p50"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(14, 1.9 + 0.52 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.75, 1))
        _times(left, rows, data)
        _memory(right, rows)
        m = data["machine"]
        missing = "".join(f"\nnot measured: {one['title']}: {one['unavailable']}" for one in absent)
        figure.suptitle(
            f"A sandbox from nothing to done, {'a quick' if data['quick'] else 'one'} run, all in turn\n"
            f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, {m['python']}, "
            f"sandhost {m['sandhost']}{missing}",
            x=0.012,
            ha="left",
            fontsize=10.5,
        )
        figure.savefig(path, dpi=150)


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
        axes.annotate(
            f"{_short(total['p50'])}{of}   ({' + '.join(_short(us[s]['p50']) for s in ('create', 'run', 'close'))})",
            (max(total["p99"], total["p50"]), y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.axvline(data["to_reach_us"], color="#202124", linewidth=0.9, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(10, max(row["us"]["total"]["p99"] for row in rows) * 300)
    log_microseconds(axes.xaxis)
    axes.set_yticks(range(len(rows)), [f"{r['title']}\n{r['language']}" for r in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_title(
        "create or fork, first evaluation, close: median of the three together, line to p99"
    )
    tidy(axes)
    axes.grid(visible=False, axis="y")


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
        axes.annotate(
            text, (at, y), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xscale("log")
    axes.set_xlim(0.01, largest * 60)
    axes.set_xlabel("MiB (proportional set size)")
    axes.set_title("memory of each live one")
    tidy(axes)
    axes.grid(visible=False, axis="y")


def _short(us: float) -> str:
    for scale, unit in ((1, "µs"), (1e3, "ms"), (1e6, "s")):
        if us < scale * 999 or unit == "s":
            break
    return f"{us / scale:.2g} {unit}" if us < scale * 99 else f"{us / scale:.0f} {unit}"
