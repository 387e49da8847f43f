"""The drawing of overload.py: what is answered and refused over time, the hostile tenant, resident memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drawing import GOOD, on_what, page

from sandhost.bench.picture import tidy

_REFUSED, _PLAIN = "#d1495b", "#5b6c8f"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what was measured."""
    rows = data["rows"]
    drawings = [
        (draw, rows[name])
        for name, draw in (
            ("too-much", _rates),
            ("too-much", _latency),
            ("hostile", _hostile),
            ("million", _million),
        )
        if name in rows
    ]
    if not drawings:
        return
    what = on_what(data["machine"], "sandhost", "wasmtime")
    with page(path, (12, 3 * len(drawings)), "The service under too much load", what) as figure:
        axes = figure.subplots(len(drawings), 1, squeeze=False)
        for (one, row), (its,) in zip(drawings, axes):
            one(its, row)
            tidy(its)


def _rates(axes: Any, row: dict[str, Any]) -> None:
    course = row["detail"]["course"]
    at = [point["at_s"] for point in course]
    axes.plot(at, [point["answered_per_s"] for point in course], color=GOOD, label="answered")
    axes.plot(at, [point["refused_per_s"] for point in course], color=_REFUSED, label="refused")
    axes.set_yscale("symlog", linthresh=100)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"Requests a second: {row['how']}", loc="left")


def _latency(axes: Any, row: dict[str, Any]) -> None:
    course, calm = row["detail"]["course"], row["detail"]["at_80_percent"]["p99"]
    at = [point["at_s"] for point in course]
    axes.plot(at, [point["answered_p99_ms"] for point in course], color=GOOD)
    axes.plot(at, [point["refused_p99_ms"] or None for point in course], color=_REFUSED)
    axes.axhline(2 * calm, color=_PLAIN, linewidth=1, linestyle="--")
    axes.set_yscale("log")
    axes.set_title(
        "p99 of each quarter of a second, ms (dashed: twice that of 80 % load)", loc="left"
    )


def _hostile(axes: Any, row: dict[str, Any]) -> None:
    rounds = row["detail"]["rounds"]
    numbers = range(1, len(rounds["alone"]) + 1)
    for phase, colour in (("alone", GOOD), ("beside", _REFUSED)):
        p99 = [one["p99"] for one in rounds[phase]]
        axes.plot(numbers, p99, "o-", color=colour, label=phase)
    axes.set_ylim(bottom=0)
    axes.set_xticks(numbers)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(
        "Nineteen tenants' p99, ms, alone and beside a hostile one, by round", loc="left"
    )


def _million(axes: Any, row: dict[str, Any]) -> None:
    course = row["detail"]["course"]
    mib = [size / 2**20 for _, size in course]
    axes.plot([count / 1000 for count, _ in course], mib, color=_PLAIN)
    axes.set_ylim(0, 1.2 * max(mib))
    axes.set_title("Resident memory, MiB, by thousands of requests served", loc="left")
