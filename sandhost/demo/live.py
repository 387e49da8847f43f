"""What the run looks like while it goes on: one screen of 80 columns, or a line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..bench.report import microseconds
from ..units import format_bytes
from .cast import TENANTS
from .load import Load, Sample

__all__ = ["sparkline", "watch"]

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 52
_FRAMES_A_SECOND = 8
_LINES_EVERY_S = 3.0


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Return the values as a row of bars from 0 to the largest, the last on the right."""
    if len(values) > width:
        values = [
            max(values[k * len(values) // width : (k + 1) * len(values) // width])
            for k in range(width)
        ]
    top = max(values, default=0) or 1
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values)


def watch(console: Console, load: Load) -> None:
    """Show the run until its threads are done."""
    if not console.is_terminal:
        _watch_lines(console, load)
        return
    with Live(console=console, refresh_per_second=_FRAMES_A_SECOND, transient=True) as live:
        while load.running:
            sample = load.sample()
            live.update(_screen(load, sample))
            time.sleep(1 / _FRAMES_A_SECOND)


def _watch_lines(console: Console, load: Load) -> None:
    next_line = _LINES_EVERY_S
    while load.running:
        sample = load.sample()
        if sample.seconds >= next_line:
            next_line += _LINES_EVERY_S
            hostile = sum(map(len, load.stopped().values()))
            console.print(
                f"{sample.seconds:4.0f} s: {format_bytes(sample.resident)} resident, {sample.live} "
                f"guests live, {load.done():,} done, {hostile} hostile stopped",
                highlight=False,
                soft_wrap=True,
            )
        time.sleep(1 / _FRAMES_A_SECOND)


def _screen(load: Load, sample: Sample) -> Panel:
    peak = max(s.resident for s in load.samples)
    graph = Table.grid(padding=(0, 2))
    graph.add_row(
        "resident",
        Text(sparkline([s.resident for s in load.samples]).ljust(_WIDTH), style="green"),
        Text(f"{format_bytes(sample.resident)}", style="bold"),
    )
    graph.add_row(
        "guests",
        Text(sparkline([s.live for s in load.samples]).ljust(_WIDTH), style="cyan"),
        Text(f"{sample.live} live", style="bold"),
    )
    summary = Text.assemble(
        (f"{load.done():,}", "bold"),
        " guests done, ",
        (format_bytes(load.total("returned")), "bold"),
        f" given back, peak {format_bytes(peak)}, ",
        f"{max(0.0, load.seconds - sample.seconds):.0f} s left",
    )
    return Panel(
        Group(graph, Text(""), summary, Text(""), _tenants(load), Text(""), hostile_table(load)),
        title="sandhost demo · two threads, four tenants, one of them hostile",
        title_align="left",
        border_style="dim",
        width=80,
    )


def _tenants(load: Load) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("tenant", "limit", "holds now", "live", "done"):
        table.add_column(heading, justify="left" if heading == "tenant" else "right", min_width=9)
    for name, limit in TENANTS.items():
        table.add_row(
            name,
            limit,
            format_bytes(load.cast.tenants[name].memory_bytes),
            str(load.live(name)),
            f"{load.done(name):,}",
        )
    return table


def hostile_table(load: Load) -> Table:
    """Return what hostile guests tried, and what stopped them."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("a hostile guest", no_wrap=True)
    table.add_column("times", justify="right")
    table.add_column("stopped by", no_wrap=True)
    table.add_column("slowest", justify="right", no_wrap=True)
    for name, ends in load.stopped().items():
        wrong = [end for end in ends if not end.as_it_should]
        last = (wrong or ends)[-1] if ends else None
        table.add_row(
            name,
            str(len(ends)),
            Text(last.by if last else "–", style="bold red" if wrong else "green"),
            f"{microseconds(max(e.ns for e in ends) / 1000)} ms" if ends else "–",
        )
    found = load.total("found")
    table.add_row(
        "looks for others' bytes",
        str(load.total("peeks")),
        Text(f"{found} found", style="bold red" if found else "green"),
        "–",
    )
    return table
