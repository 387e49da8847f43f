"""The figures as a drawing: how far each is from what was to reach, and where we stand beside the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import three_digits
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

from sandhost.bench.picture import colour_of, log_microseconds, tidy

_REACHED, _MISSED = GOOD, "#d1495b"
_IN_C = {"C, pooled": "#5b6c8f", "C, pooled, keep_resident 1 MiB": "#a3b1cc"}


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what figures.py measured."""
    cycles = [row for row in data["rows"] if "us_p50_of_blocks" in row["detail"]]
    million = [row for row in data["rows"] if "resident_bytes" in row["detail"]]
    small = on_what(data["machine"], "sandhost", "wasmtime")
    with page(path, (14, 8.4), f"Figures to reach, {one_run(data)}", small) as figure:
        grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.05), height_ratios=(1.6, 1))
        _claims(figure.add_subplot(grid[:, 0]), data["rows"])
        if cycles:
            _cycles(figure.add_subplot(grid[0, 1]), cycles)
        if million:
            _million(figure.add_subplot(grid[1, 1]), million[0])


def _claims(axes: Any, rows: list[dict[str, Any]]) -> None:
    labels = []
    for row in rows:
        for claim in row["claims"]:
            measured, limit = claim["measured"], claim["limit"]
            margin = limit / max(measured, limit / 100) if claim["at_most"] else measured / limit
            y = len(labels)
            colour = _REACHED if claim["reached"] else _MISSED
            axes.barh(y, margin - 1, left=1, height=0.62, color=colour)
            sign = "≤" if claim["at_most"] else "≥"
            words = f"{three_digits(measured)} {claim['unit']}  ({sign} {limit:,g})"
            words_behind(axes, max(margin, 1), y, words)
            labels.append(f"{row['what']}\n{claim['what']}")
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.set_xscale("log")
    names_downwards(axes, labels, 7.5)
    ticks = [t for t in (0.01, 0.1, 0.5, 1, 2, 5, 10, 100) if axes.get_xlim()[0] <= t]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * 6)
    axes.set_title("margin to the target: right of the line is better than asked")
    tidy_lying(axes)


def _cycles(axes: Any, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0]["detail"]["us"])
    width = 0.84 / len(names)
    for number, name in enumerate(names):
        colour = _IN_C.get(name) or colour_of(name)
        for position, row in enumerate(rows):
            us = row["detail"]["us"][name]
            x = position + (number - (len(names) - 1) / 2) * width
            label = name if position == 0 else None
            axes.bar(x, us["p50"], width * 0.88, color=colour, label=label)
            axes.plot([x, x], [us["p50"], us["p99"]], color=colour, linewidth=1.2)
            axes.annotate(
                f"{us['p50']:.3g}",
                (x, us["p50"]),
                xytext=(0, -2),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=6.5,
                color="white",
            )
    axes.set_yscale("log")
    axes.set_ylim(0.7)
    axes.set_xticks(
        range(len(rows)), [row["what"].rpartition(", ")[2] + " dirtied" for row in rows]
    )
    log_microseconds(axes.yaxis)
    axes.set_title("spawn + call + close: median (number in µs), line to p99", pad=36)
    axes.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1.0), fontsize=7.5, borderpad=0)
    tidy(axes)
    axes.grid(visible=False, axis="x")


def _million(axes: Any, row: dict[str, Any]) -> None:
    trace = [value / (1 << 20) for value in row["detail"]["resident_bytes"]]
    cycles = [10 * k for k in range(len(trace))]
    axes.plot(cycles, trace, color=_REACHED if row["reached"] else _MISSED, linewidth=1.8)
    axes.set_ylim(0, max(trace) * 1.25)
    axes.set_xlim(0, cycles[-1])
    axes.set_xlabel("thousand cycles")
    axes.set_ylabel("resident, MiB", fontweight="bold")
    axes.set_title(f"{row['what']}: resident memory, {_how_flat(row)}")
    tidy(axes)


def _how_flat(row: dict[str, Any]) -> str:
    return f"{row['claims'][0]['measured']:+.2f} MiB after the first 10,000"
