"""Pacing as a drawing: the heap over time under each policy, and what it costs in memory and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from common import three_digits
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sandhost.bench.picture import STYLE, tidy

_COLOURS = {"fixed 100": "#e07a5f", "pacer": "#17b978", "pacer + adaptive": "#3d5a98"}
_HELD = "#dfe3e8"
_BARS = (
    ("mean_mib", "mean heap,\nMiB"),
    ("peak_mib", "highest heap,\nMiB"),
    ("collecting_percent", "collecting,\n% of all core time"),
    ("beyond_goal_percent", "worst end of a cycle\nbeyond its goal, %"),
)


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what pacing.py simulated."""
    loads = list(dict.fromkeys(row["load"] for row in data["rows"]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(16, 2.55 * len(loads) + 0.9), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(len(loads), 5, width_ratios=(4.2, 1, 1, 1, 1))
        for number, load in enumerate(loads):
            rows = [row for row in data["rows"] if row["load"] == load]
            _heap(figure.add_subplot(grid[number, 0]), rows, data["simulated"]["seconds"])
            for column, (key, title) in enumerate(_BARS, start=1):
                axes = figure.add_subplot(grid[number, column])
                _bars(axes, rows, key, title if number == 0 else None)
        s = data["simulated"]
        figure.suptitle(
            f"When to collect: three policies on five loads, {s['seconds']:g} simulated seconds on "
            f"{s['cores']} cores\n"
            "left: the heap over time, grey what the program holds of it; right: median of "
            f"{s['seeds']} runs, without the first 3 s",
            x=0.008,
            ha="left",
            fontsize=11,
        )
        figure.savefig(path, dpi=130)


def _heap(axes: Any, rows: list[dict[str, Any]], seconds: float) -> None:
    held = rows[1]["curve"]
    axes.fill_between(held["s"], held["held_mib"], color=_HELD, linewidth=0, label="held")
    for row in rows:
        curve = row["curve"]
        colour = _COLOURS[row["policy"]]
        axes.plot(
            curve["s"],
            curve["live_mib"],
            color=colour,
            linewidth=1.15,
            alpha=0.9,
            label=row["policy"],
        )
    axes.set_xlim(0, seconds)
    axes.set_ylim(0)
    axes.set_ylabel("MiB")
    axes.set_title(rows[0]["load"])
    axes.xaxis.set_major_formatter("{x:g} s")
    if rows[0]["load"] == "steady":
        axes.legend(
            ncols=4, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8.5, borderpad=0
        )
    tidy(axes)


def _bars(axes: Any, rows: list[dict[str, Any]], key: str, title: str | None) -> None:
    values = [row[key] for row in rows]
    most = max(*values, 1e-9)
    for place, row in enumerate(rows):
        axes.barh(place, row[key], height=0.66, color=_COLOURS[row["policy"]])
        axes.annotate(
            three_digits(row[key]),
            (row[key], place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_xlim(0, most * 1.35)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.invert_yaxis()
    if title is not None:
        axes.set_title(title, fontsize=8.5)
    tidy(axes)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
