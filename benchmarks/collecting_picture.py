"""The drawing of collecting.py: forced collections, a heap in steady state, and who releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import three_digits
from drawing import GOOD, names_downwards, on_what, one_run, page, tidy_lying, words_behind

from sandhost.bench.picture import tidy

_PLAIN, _OTHER, _LIMIT = "#a3b1cc", "#5b6c8f", "#d1495b"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what collecting.py measured."""
    forced, free, limited, crowded, ways = data["rows"]
    headline = f"Collecting on the handle heap, {one_run(data)}"
    small = on_what(data["machine"], "sandhost", "wasmtime")
    with page(path, (16, 7.2), headline, small) as figure:
        grid = figure.add_gridspec(2, 12)
        _forced(figure.add_subplot(grid[0, :3]), forced)
        _heap(figure.add_subplot(grid[0, 3:6]), free["detail"], "Steady load")
        _heap(figure.add_subplot(grid[0, 6:9]), limited["detail"], "With a memory limit")
        _heap(figure.add_subplot(grid[0, 9:]), crowded["detail"], "Beside hungry threads")
        for column, (key, title, scale) in enumerate(
            (
                ("objects_per_s", "Objects a second, thousands", 1e-3),
                ("peak_bytes", "Most that was live, MiB", 2**-20),
                ("close_and_drop_us", "Close, objects dropped, ms", 1e-3),
            )
        ):
            axes = figure.add_subplot(grid[1, 4 * column : 4 * column + 4])
            _ways(axes, ways["detail"]["ways"], key, title, scale)


def _forced(axes: Any, row: dict[str, Any]) -> None:
    modes = row["detail"]["modes"]
    marks = {"p50": "o", "mean": "^", "p99": "s", "p99.9": "D"}
    for y, (mode, figures) in enumerate(modes.items()):
        colour = _LIMIT if "forced" in mode else GOOD
        values = [figures[mark] for mark in marks]
        axes.plot([min(values), max(values)], [y, y], color=colour, linewidth=2, alpha=0.5)
        for value, shape in zip(values, marks.values()):
            axes.plot(value, y, shape, color=colour, markersize=6)
        words_behind(axes, max(values), y, f"{figures['collections']:,.0f} collections")
    for mark, shape in marks.items():
        axes.plot([], [], shape, color=_OTHER, label=mark)
    axes.set_xscale("log")
    axes.set_xlim(right=max(f["p99.9"] for f in modes.values()) * 30)
    axes.set_ylim(-0.5, len(modes) + 0.3)
    axes.set_xlabel("µs a write")
    names_downwards(axes, list(modes), 8.5)
    axes.set_title(row["what"], loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower left", ncols=4)
    tidy_lying(axes)


def _heap(axes: Any, detail: dict[str, Any], title: str) -> None:
    mib = 2**-20
    times = [s for s, _ in detail["curve"]]
    axes.plot(times, [live * mib for _, live in detail["curve"]], color=GOOD, linewidth=1)
    lines = [(detail["held_bytes"], _PLAIN, "held"), (detail["goal_bytes"], _OTHER, "goal")]
    if detail["limit_bytes"]:
        lines.append((detail["limit_bytes"], _LIMIT, "limit"))
    for value, colour, name in lines:
        axes.axhline(value * mib, color=colour, linewidth=1, linestyle="--", label=name)
    axes.set_ylim(0, max(value for value, _, _ in lines) * mib * 1.3)
    axes.set_xlabel("s")
    axes.set_title(
        f"{title}: live, MiB\ncollector {detail['utilization_percent']:.0f} % of the cores while it marks,\n"
        f"{detail['of_all_time_percent']:.0f} % of all their time with sweeping",
        loc="left",
        fontsize=9.5,
    )
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    tidy(axes)


def _ways(axes: Any, ways: dict[str, Any], key: str, title: str, scale: float) -> None:
    values = [figures[key] * scale for figures in ways.values()]
    colours = [GOOD if "collector" in way else _PLAIN for way in ways]
    axes.barh(range(len(values)), values, height=0.6, color=colours)
    for y, value in enumerate(values):
        words_behind(axes, value, y, three_digits(value))
    names_downwards(axes, list(ways), 8.5)
    axes.set_xlim(0, max(values) * 1.25)
    axes.set_title(title, loc="left")
    tidy_lying(axes)
