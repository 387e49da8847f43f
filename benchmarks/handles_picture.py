"""The drawing of handles.py: rates and waits from ten thousand handles to ten million, and cache misses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common import median, three_digits
from drawing import GOOD, names_downwards, on_what, one_run, page, tidy_lying, words_behind

from sandhost.bench.picture import tidy

_PLAIN, _OTHER, _LIMIT = "#a3b1cc", "#5b6c8f", "#d1495b"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what handles.py measured."""
    sizes = {
        row["detail"]["runs"][0]["cells"]: row["detail"]["runs"]
        for row in data["rows"]
        if "runs" in row["detail"]
    }
    layouts = [row for row in data["rows"] if "misses" in row["detail"]]
    headline = f"The handle heap by itself, {one_run(data)}"
    small = on_what(data["machine"], "sandhost")
    with page(path, (13, 4.6), headline, small) as figure:
        axes = figure.subplots(1, 3 if layouts else 2)
        _rates(axes[0], sizes)
        _waits(axes[1], sizes)
        if layouts:
            _misses(axes[2], layouts[0]["detail"])


def _over_sizes(axes: Any, sizes: dict[int, Any], title: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(sizes), [f"{size:,}" for size in sizes], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("live handles")
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)


def _rates(axes: Any, sizes: dict[int, Any]) -> None:
    for order, colour in (("in_order", _PLAIN), ("random", GOOD)):
        rates = [median([r["mark_edges_per_s"][order] for r in runs]) for runs in sizes.values()]
        axes.plot(
            list(sizes),
            [r / 1e6 for r in rates],
            "o-",
            color=colour,
            label=f"edges {order.replace('_', ' ')}",
        )
    pairs = [1e3 / median([r["new_release_ns"] for r in runs]) for runs in sizes.values()]
    axes.plot(list(sizes), pairs, "s-", color=_OTHER, label="handles made and released")
    axes.axhline(20, color=_LIMIT, linewidth=1, linestyle="--", label="edges to reach")
    axes.set_yscale("log")
    marks = (20, 50, 100, 150)
    axes.set_yticks(marks, [str(mark) for mark in marks])
    _over_sizes(axes, sizes, "Millions a second of CPU")


def _waits(axes: Any, sizes: dict[int, Any]) -> None:
    for title, colour, name in (
        ("operations_alone", _PLAIN, "no cycle"),
        ("operations_while_cycles_run", GOOD, "cycles back to back"),
    ):
        for mark, shape in (("p50_ns", "o"), ("p999_ns", "D")):
            values = [median([r[title][mark] for r in runs]) / 1000 for runs in sizes.values()]
            label = f"{name}, {'p50' if mark == 'p50_ns' else 'p99.9'}"
            axes.plot(list(sizes), values, f"{shape}-", color=colour, label=label)
    axes.axhline(200, color=_LIMIT, linewidth=1, linestyle="--", label="the most at p99.9")
    axes.set_yscale("log")
    axes.set_ylim(top=5000)
    _over_sizes(axes, sizes, "An operation of a guest, µs")


def _misses(axes: Any, detail: dict[str, Any]) -> None:
    for number, (name, phases) in enumerate(detail["misses"].items()):
        colour = GOOD if name == "hot and cold" else _PLAIN
        places = [y + 0.38 * (number - 0.5) for y in range(len(phases))]
        values = [phase["first"] for phase in phases.values()]
        axes.barh(
            places,
            values,
            height=0.36,
            color=colour,
            label=f"{name}, {detail['bytes'][name]} bytes",
        )
        for y, value in zip(places, values):
            words_behind(axes, value, y, three_digits(value))
    names_downwards(axes, list(next(iter(detail["misses"].values()))), 8.5)
    axes.set_xlim(0, 2)
    axes.set_title("Cache misses each, simulated, 32 KiB", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    tidy_lying(axes)
