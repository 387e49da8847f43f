"""A run as a drawing: percentile curves, and cycles a second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from .latency import PERCENTILES

if TYPE_CHECKING:
    from .results import Results, Row

__all__ = ["STYLE", "colour_of", "draw", "log_microseconds", "tidy"]

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#3c4043",
    "text.color": "#202124",
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
    "grid.color": "#e8eaed",
    "legend.frameon": False,
}
_COLOURS = {
    "sandhost immediate": "#0b6e4f",
    "sandhost warm": "#17b978",
    "sandhost lazy": "#7fc8a9",
    "wasmtime-py": "#e07a5f",
    "wasmtime-py pooled": "#9c4a35",
    "extism": "#6d6875",
}
_OTHER = "#8d99ae"
_ROWS = (("cycle", "spawn + call + unload"), ("spawn", "spawn"), ("unload", "unload"))
_MOST_COLUMNS = 4


def colour_of(contender: str) -> str:
    """Return the colour that a contender has in every picture."""
    return _COLOURS.get(contender, _OTHER)


def log_microseconds(axis: Any) -> None:
    """Label a logarithmic axis of microseconds in ns, µs, ms and s."""

    def name(value: float, _position: object) -> str:
        for scale, unit in ((1e-3, "ns"), (1, "µs"), (1e3, "ms"), (1e6, "s")):
            if value < scale * 999:
                return f"{value / scale:g} {unit}"
        return f"{value / 1e6:g} s"

    axis.set_major_formatter(FuncFormatter(name))
    axis.set_minor_formatter(FuncFormatter(lambda _value, _position: ""))


def tidy(axes: Any) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, which="both")


def draw(results: Results, path: Path) -> None:
    """Write the picture of a run; its format is the one that the file's name ends with."""
    cases = list(results.cases())
    columns = [rows for rows in cases if rows[0].threads == cases[0][0].threads][:_MOST_COLUMNS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1 * max(len(columns), 2), 11.2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(_ROWS) + 1, len(columns), squeeze=False)
        for down, (operation, title) in enumerate(_ROWS):
            for across, rows in enumerate(columns):
                axes = grid[down][across]
                _percentiles(axes, rows, operation)
                if down == 0:
                    axes.set_title(rows[0].label, pad=12)
            grid[down][0].set_ylabel(title, fontweight="bold", labelpad=8)
            _share_scale(grid[down])
        for across, rows in enumerate(columns):
            _throughput(grid[-1][across], _all_threads(cases, rows[0]), names=across == 0)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
        figure.suptitle(_headline(results, columns[0][0]), x=0.012, ha="left", fontsize=10)
        figure.savefig(path, dpi=150)


def _headline(results: Results, row: Row) -> str:
    m = results.machine
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return (
        f"A guest's life, {row.plugin}.wasm, {threads} (throughput: all)\n"
        f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, {m['python']}, "
        f"sandhost {m['sandhost']}, wasmtime {m['wasmtime']}"
    )


def _percentiles(axes: Any, rows: list[Row], operation: str) -> None:
    for row in rows:
        histogram = row.histograms.get(operation)
        if histogram is None or not histogram.count:
            continue
        least = 10 / histogram.count  # beyond that, too few samples to draw
        points = [
            (100 / (100 - percent), ns / 1000)
            for percent, ns in histogram.curve()
            if percent < 100 and (100 - percent) / 100 >= least
        ]
        axes.plot(
            *zip(*points, strict=True) if points else ([], []),
            label=row.contender,
            color=colour_of(row.contender),
            linewidth=2.2 if row.contender.startswith("sandhost") else 1.4,
            linestyle="-" if row.contender.startswith("sandhost") else (0, (4, 1.5)),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [100 / (100 - percent) for percent in PERCENTILES]
    axes.set_xticks(ticks, [f"p{percent:g}" for percent in PERCENTILES])
    axes.minorticks_off()
    axes.set_xlim(1, ticks[-1] * 1.3)
    log_microseconds(axes.yaxis)
    tidy(axes)


def _share_scale(row: Any) -> None:
    limits = [axes.get_ylim() for axes in row]
    for number, axes in enumerate(row):
        if number:
            axes.tick_params(labelleft=False)
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _all_threads(cases: list[list[Row]], first: Row) -> list[list[Row]]:
    return [
        rows
        for rows in cases
        if (rows[0].label, rows[0].memory_bytes) == (first.label, first.memory_bytes)
    ]


def _throughput(axes: Any, groups: list[list[Row]], *, names: bool) -> None:
    contenders = [row.contender for row in groups[0]]
    height = 0.8 / len(groups)
    for number, rows in enumerate(groups):
        for position, row in enumerate(rows):
            rate = (row.median_of("cycles_per_s") or 0) / 1000
            y = position + (number - (len(groups) - 1) / 2) * height
            axes.barh(
                y,
                rate,
                height * 0.92,
                color=colour_of(row.contender),
                alpha=1 - 0.35 * (number % 2),
            )
            threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
            axes.annotate(
                f" {rate:.3g}  {threads}", (rate, y), va="center", fontsize=7.5, color="#5f6368"
            )
    axes.set_yticks(range(len(contenders)), contenders if names else [""] * len(contenders))
    axes.invert_yaxis()
    axes.margins(x=0.32)
    axes.set_xlabel("thousand cycles a second", fontweight="bold")
    tidy(axes)
    axes.grid(visible=False, axis="y")
