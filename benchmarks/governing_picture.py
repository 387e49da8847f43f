"""The drawing of governing.py: resident memory and the level over time, and the good tenants' latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drawing import GOOD, on_what, page

from sandhost.bench.picture import tidy

_LEVELS = {1: "#fff3d6", 2: "#ffe0b2", 3: "#ffc9a8", 4: "#f7a8a0"}
_NAMES = ("calm", "evict", "refuse", "release", "end guests")
_PLAIN, _LIMIT = "#5b6c8f", "#d1495b"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write the picture of what governing.py measured."""
    (row,) = data["rows"]
    detail = row["detail"]
    headline = f"Ten hostile tenants and two good ones, {row['how']}"
    with page(path, (12, 6), headline, on_what(data["machine"], "sandhost", "wasmtime")) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _memory(above, detail)
        _latency(below, detail)


def _memory(axes: Any, detail: dict[str, Any]) -> None:
    course, mib = detail["course"], 2**-20
    times = [at for at, _, _ in course]
    for (at, _, level), after in zip(course, [*times[1:], times[-1]]):
        if level:
            axes.axvspan(at, after, color=_LEVELS[level], linewidth=0)
    for level, colour in _LEVELS.items():
        axes.fill_between([], [], color=colour, label=_NAMES[level])
    axes.plot(times, [resident * mib for _, resident, _ in course], color=GOOD, linewidth=1.2)
    limit = detail["limit_bytes"] * mib
    axes.axhline(limit, color=_LIMIT, linewidth=1, linestyle="--")
    axes.text(times[0], limit * 1.01, "limit", color=_LIMIT, fontsize=8)
    axes.set_ylim(0, limit * 1.15)
    peak = detail["peak_resident_bytes"] / detail["limit_bytes"]
    count = detail["guests_ended"]
    ended = f"{count} guests of hostile tenants ended" if count else "no guest was ended"
    axes.set_title(f"Resident memory, MiB: at most {peak:.1%} of the limit; {ended}", loc="left")
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower right")
    tidy(axes)


def _latency(axes: Any, detail: dict[str, Any]) -> None:
    axes.plot(detail["by_second_us"], color=_PLAIN, linewidth=1)
    alone = detail["p99_us"]["alone"]
    for factor, style in ((1, "-"), (2, "--")):
        axes.axhline(
            alone * factor, color=_LIMIT if factor == 2 else GOOD, linewidth=1, linestyle=style
        )
    axes.set_yscale("log")
    axes.set_xlabel("s")
    axes.set_title(
        f"A good tenant's request, µs, p99 of each second; over all {detail['p99_us']['beside']:,.0f}, "
        f"alone {alone:,.0f} (line; dashed: twice that)",
        loc="left",
    )
    tidy(axes)
