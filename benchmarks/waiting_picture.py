"""The drawing of waiting.py: what an await costs, how late the loop is, what guests that wait hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import three_digits
from drawing import GOOD, names_downwards, on_what, one_run, page, tidy_lying, words_behind

_PLAIN, _OTHER = "#a3b1cc", "#5b6c8f"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what waiting.py measured."""
    rows = data["rows"]
    awaits = next(row for row in rows if "median_us" in row["detail"])
    live = next(row for row in rows if "resident_bytes_each" in row["detail"])
    late = next(row for row in rows if "late_us" in row["detail"])
    headline = f"Guests on the event loop, {one_run(data)}"
    small = on_what(data["machine"], "sandhost", "wasmtime")
    with page(path, (13, 6.4), headline, small) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1))
        _awaits(figure.add_subplot(grid[0, 0]), awaits["detail"]["median_us"])
        _live(figure.add_subplot(grid[1, 0]), live["detail"])
        _late(figure.add_subplot(grid[:, 1]), late["detail"]["late_us"])


def _awaits(axes: Any, medians: dict[str, float]) -> None:
    colours = [GOOD if "of one" in name or "add" in name else _PLAIN for name in medians]
    axes.barh(range(len(medians)), list(medians.values()), height=0.6, color=colours)
    for y, value in enumerate(medians.values()):
        words_behind(axes, value, y, f"{three_digits(value)} µs")
    names_downwards(axes, list(medians), 8.5)
    axes.set_title("One await, median (grey: asyncio by itself)", loc="left")
    axes.set_xlim(0, max(medians.values()) * 1.25)
    tidy_lying(axes)


def _live(axes: Any, detail: dict[str, Any]) -> None:
    each = detail["resident_bytes_each"] / 1024
    axes.barh([0, 1], [64, each], height=0.6, color=[_PLAIN, GOOD])
    words_behind(axes, 64, 0, "64 KiB")
    words_behind(axes, each, 1, f"{three_digits(each)} KiB")
    names_downwards(axes, ["the most that was allowed", "resident for each guest"], 8.5)
    axes.set_title(
        f"{detail['guests']:,} guests suspended at once, one thread",
        loc="left",
    )
    axes.set_xlim(0, 80)
    tidy_lying(axes)


def _late(axes: Any, late: dict[str, dict[str, float]]) -> None:
    marks = {"p50": "o", "p99": "s", "p99.9": "D", "max": "|"}
    for y, (name, figures) in enumerate(late.items()):
        colour = GOOD if "guests" in name else _OTHER
        values = [figures[mark] / 1000 for mark in marks]
        axes.plot([values[0], values[-1]], [y, y], color=colour, linewidth=2, alpha=0.5)
        for value, shape in zip(values, marks.values()):
            axes.plot(value, y, shape, color=colour, markersize=7)
        words_behind(axes, values[-1], y, f"p99 {three_digits(values[1])} ms")
    for mark, shape in marks.items():
        axes.plot([], [], shape, color=_OTHER, label=mark)
    axes.axvline(5, color="#d1495b", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(right=max(f["max"] for f in late.values()) / 1000 * 8)
    axes.set_xlabel("late by, ms (dashed: the most for the p99)")
    names_downwards(axes, list(late), 8.5)
    axes.set_title("How late a timer of 1 ms is", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    tidy_lying(axes)
