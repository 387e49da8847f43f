"""The drawing of page_pool.py: a request's time and the rate, by the size of its buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drawing import GOOD, on_what, one_run, page

from sandhost.bench.picture import log_microseconds, tidy

_COLOURS = {"page pool": GOOD, "bytearray": "#8d99ae"}


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what page_pool.py measured."""
    headline = f"A buffer for each request, {data['in_flight']} in flight a thread, {one_run(data)}"
    with page(path, (13, 7), headline, on_what(data["machine"], "sandhost")) as figure:
        axes = figure.subplots(2, 3)
        for line, used in zip(axes, dict.fromkeys(row["used"] for row in data["rows"])):
            for cell, threads in zip(line, (1, 2)):
                rows = _rows(data, used, threads)
                _times(cell, rows, f"{used} used, {threads} thread{'s' * (threads > 1)}")
            _rates(line[2], data, used)


def _rows(data: dict[str, Any], used: str, threads: int) -> list[dict[str, Any]]:
    rows = data["rows"]
    return [row for row in rows if (row["used"], row["threads"]) == (used, threads)]


def _times(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    for name, colour in _COLOURS.items():
        for figure, style in (("p50_us", "o-"), ("p99_us", "o--"), ("p99.9_us", "o:")):
            values = [row[name][figure] for row in rows]
            label = f"{name}, {figure.removesuffix('_us')}"
            axes.plot(_sizes(rows), values, style, color=colour, markersize=3, label=label)
    axes.set_yscale("log")
    log_microseconds(axes.yaxis)
    _finish(axes, rows, title)


def _rates(axes: Any, data: dict[str, Any], used: str) -> None:
    for threads, style in ((1, "o-"), (2, "s--")):
        rows = _rows(data, used, threads)
        ratios = [row["page pool"]["per_s"] / row["bytearray"]["per_s"] for row in rows]
        label = f"{threads} thread{'s' * (threads > 1)}"
        axes.plot(_sizes(rows), ratios, style, color=GOOD, label=label)
    axes.axhline(1, color=_COLOURS["bytearray"], linewidth=1)
    axes.set_ylim(bottom=0)
    _finish(axes, rows, f"{used} used: requests a second, to bytearray")


def _sizes(rows: list[dict[str, Any]]) -> list[float]:
    return [row["size"] / 1024 for row in rows]


def _finish(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(_sizes(rows), [f"{size:g}" for size in _sizes(rows)])
    axes.minorticks_off()
    axes.set_xlabel("KiB of the buffer")
    axes.set_title(title, loc="left")
    axes.legend(fontsize=7)
    tidy(axes)
