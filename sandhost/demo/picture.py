"""The demo as a drawing: memory over time, latencies beside the peers', and a guest's own work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..bench.picture import STYLE, colour_of, log_microseconds, tidy
from ..units import format_bytes
from .cast import GRAPHVIZ
from .contest import OPERATIONS, PAGES, percentile
from .drawing import draw_plain

if TYPE_CHECKING:
    from .report import Outcome

__all__ = ["draw"]

_MIB = 1 << 20
_RESIDENT, _GUESTS = "#17b978", "#3d5a80"


def draw(outcome: Outcome, layout: bytes, path: Path) -> None:
    """Write the picture; `layout` is what Graphviz made of the cast, b"" without it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.5, 8.2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.12), width_ratios=(1.25, 1))
        _memory(figure.add_subplot(grid[0, :]), outcome)
        if layout:
            _latencies(figure.add_subplot(grid[1, 0]), outcome)
            axes = figure.add_subplot(grid[1, 1])
            draw_plain(axes, layout.decode())
            axes.set_title(f"who takes part, laid out by {GRAPHVIZ}.wasm in a guest")
        else:
            _latencies(figure.add_subplot(grid[1, :]), outcome)
        m = outcome.machine
        figure.suptitle(
            f"sandhost demo: {outcome.load.done():,} guests of four tenants, one of them hostile\n"
            f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, {m['python']}, "
            f"sandhost {m['sandhost']}, wasmtime {m['wasmtime']}",
            x=0.012,
            ha="left",
            fontsize=10.5,
        )
        figure.savefig(path, dpi=150)


def _memory(axes: Any, outcome: Outcome) -> None:
    samples = outcome.load.samples
    seconds = [sample.seconds for sample in samples]
    resident = [sample.resident / _MIB for sample in samples]
    axes.fill_between(seconds, resident, color=_RESIDENT, alpha=0.25, linewidth=0)
    axes.plot(seconds, resident, color=_RESIDENT, linewidth=2)
    axes.axhline(outcome.before / _MIB, color="#5f6368", linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f" {format_bytes(outcome.before)} before the first guest, "
        f"{format_bytes(outcome.after)} after the last",
        (0, outcome.before / _MIB),
        xytext=(2, -4),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color="#5f6368",
    )
    axes.set_ylim(0)
    axes.set_xlim(0, max(seconds))
    axes.set_ylabel("resident, MiB", color=_RESIDENT, fontweight="bold")
    axes.set_xlabel("seconds")
    hostile = sum(map(len, outcome.load.stopped().values()))
    axes.set_title(
        f"memory comes back with every wave: {format_bytes(outcome.load.total('returned'))} given "
        f"back in all, {hostile} hostile guests stopped meanwhile",
        pad=10,
    )
    tidy(axes)
    guests = axes.twinx()
    guests.plot(seconds, [s.live for s in samples], color=_GUESTS, linewidth=1.3)
    guests.set_ylim(0)
    guests.set_ylabel("guests alive", color=_GUESTS, fontweight="bold")
    guests.spines[["top", "left", "right"]].set_visible(False)
    guests.tick_params(length=0)


def _latencies(axes: Any, outcome: Outcome) -> None:
    contest = outcome.contest
    names = list(contest.sorted_ns)
    width = 0.82 / len(names)
    for number, name in enumerate(names):
        for position, operation in enumerate(OPERATIONS):
            values = contest.sorted_ns[name][operation]
            low, high = (percentile(values, percent) / 1000 for percent in (50, 99))
            x = position + (number - (len(names) - 1) / 2) * width
            axes.bar(
                x,
                low,
                width * 0.88,
                color=colour_of(name),
                label=name if position == 0 else None,
            )
            axes.plot([x, x], [low, high], color=colour_of(name), linewidth=1.2)
            axes.plot([x - width / 4, x + width / 4], [high, high], color=colour_of(name), lw=1.2)
            axes.annotate(
                f"{low:.3g}",
                (x, low),
                xytext=(0, -2),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=6.5,
                color="white",
            )
    axes.set_yscale("log")
    axes.set_ylim(0.5)
    axes.set_xticks(range(len(OPERATIONS)), OPERATIONS)
    log_microseconds(axes.yaxis)
    axes.set_title(f"one guest, {PAGES} pages dirtied: median (number in µs) and p99", pad=24)
    axes.legend(
        ncols=len(names),
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        fontsize=7.5,
        handlelength=1,
        columnspacing=1,
        borderpad=0,
    )
    tidy(axes)
    axes.grid(visible=False, axis="x")
