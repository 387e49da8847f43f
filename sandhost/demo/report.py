"""What the run came to: checks, tables, JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bench.machine import Machine
from ..bench.report import microseconds
from ..govern.stats import MemStats
from ..units import format_bytes, format_ns
from .cast import Cast
from .contest import OPERATIONS, PAGES, Contest, percentile
from .live import hostile_table, sparkline
from .load import Load

__all__ = ["Outcome", "print_outcome"]

_PERCENTS = (50.0, 99.0, 99.9)
_LEFT_BYTES = 16 << 20
"""More than this above the start, with no guest alive, is a leak. Arbitrary: Python's own heap and
the malloc arenas of two threads grow by a few MiB."""


@dataclass
class Outcome:
    """A whole run."""

    machine: Machine
    cast: Cast
    load: Load
    contest: Contest
    before: int
    """Resident bytes, with all plugins loaded and no guest yet."""
    peak: int
    after: int
    """Resident bytes, when the last guest was closed."""
    stats: MemStats
    """At that moment."""

    def failures(self) -> list[str]:
        """Say which promise did not hold."""
        load, stats = self.load, self.stats
        out = [
            f"a hostile guest that {name} ended otherwise than it should: {end.by}"
            for name, ends in load.stopped().items()
            for end in ends
            if not end.as_it_should
        ][:5]
        counted = {
            "bytes of other tenants were found in fresh memory": load.total("found"),
            "honest guests answered wrongly": load.total("wrong"),
            "reported reclaims differ from the kernel's count": load.total("mismatches"),
            "guests are still alive": stats.guests_live,
            "regions could not be reset": stats.reset_failures,
        }
        out += [f"{count} {what}" for what, count in counted.items() if count]
        left = self.after - self.before
        if left > _LEFT_BYTES:
            out.append(f"{format_bytes(left)} more are resident at the end than before")
        return out

    def as_json(self) -> dict[str, Any]:
        """Return every figure."""
        load = self.load
        return {
            "schema": "sandhost-demo/1",
            "machine": self.machine,
            "plugins_loaded_ns": self.cast.load_ns,
            "left_out": {**self.cast.missing, **self.contest.left_out},
            "seconds": load.seconds,
            "guests_done": load.done(),
            "work_done": dict(load.jobs()),
            "hostile": {
                name: {
                    "times": len(ends),
                    "stopped_by": sorted({end.by for end in ends}),
                    "slowest_ns": max((end.ns for end in ends), default=None),
                }
                for name, ends in load.stopped().items()
            },
            "peeks": load.total("peeks"),
            "bytes_of_others_found": load.total("found"),
            "reclaims_checked": load.total("checked"),
            "reclaims_wrong": load.total("mismatches"),
            "resident_bytes": {"before": self.before, "peak": self.peak, "after": self.after},
            "reclaimed_bytes": load.total("returned"),
            "under_load_ns": {
                operation: _summary(load.latencies(operation)) for operation in ("spawn", "unload")
            },
            "in_turn_ns": {
                name: {op: _summary(by_operation[op]) for op in OPERATIONS}
                for name, by_operation in self.contest.sorted_ns.items()
            },
            "resident_over_time": [[round(s.seconds, 3), s.resident, s.live] for s in load.samples],
            "failures": self.failures(),
        }


def _summary(ascending: list[int]) -> dict[str, int]:
    if not ascending:
        return {"samples": 0}
    figures = {f"p{percent:g}": percentile(ascending, percent) for percent in _PERCENTS}
    return {**figures, "max": ascending[-1], "samples": len(ascending)}


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
        padding=(0, 2, 0, 0),
    )
    table.add_column(columns[0], no_wrap=True)
    for heading in columns[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print what happened, 80 columns wide."""
    load = outcome.load
    work = ", ".join(f"{count:,} × {name}" for name, count in load.jobs().most_common())
    console.print(
        f"[bold]{load.done():,} guests[/] of four tenants in {load.seconds:g} s on two threads: "
        f"{work}",
        highlight=False,
    )
    hostile = hostile_table(load)
    hostile.title = "\nMeanwhile"
    hostile.title_justify, hostile.title_style = "left", "bold"
    console.print(hostile)
    _print_memory(console, outcome)
    console.print(_under_load(load))
    console.print(_in_turn(outcome.contest))
    console.print(
        f"In turn, one thread, {PAGES} OS pages dirtied, the same module; each used as its documents "
        "say. ×: so many times sandhost warm, by p50.",
        style="dim",
        highlight=False,
    )
    for name, reason in {**outcome.cast.missing, **outcome.contest.left_out}.items():
        console.print(f"[yellow]{name} left out:[/] {reason}", highlight=False)


def _print_memory(console: Console, outcome: Outcome) -> None:
    load = outcome.load
    table = _table("Memory that came back", "", "")
    table.add_row("resident before the first guest", format_bytes(outcome.before))
    table.add_row("resident at the peak", format_bytes(outcome.peak))
    table.add_row("resident after the last guest", Text(format_bytes(outcome.after), style="bold"))
    table.add_row("given back by closes, in all", format_bytes(load.total("returned")))
    console.print(table)
    console.print(sparkline([s.resident for s in load.samples], 76), style="green", highlight=False)
    console.print(
        f"{load.total('checked'):,} guests' reclaim was held against the kernel's count of their "
        f"pages: {load.total('mismatches')} differ.",
        highlight=False,
    )


def _under_load(load: Load) -> Table:
    table = _table("Under that load, µs", "", "p50", "p99", "p99.9", "max", "samples")
    for operation in ("spawn", "unload"):
        summary = _summary(load.latencies(operation))
        table.add_row(
            operation,
            *(microseconds(summary.get(key)) for key in ("p50", "p99", "p99.9", "max")),
            f"{summary['samples']:,}",
        )
    return table


def _in_turn(contest: Contest) -> Table:
    table = _table("sandhost and its peers, µs", "", "", "p50", "p99", "p99.9", "max", "×")
    table.columns[1].justify = "left"
    ours = next(iter(contest.sorted_ns))
    for operation in OPERATIONS:
        for name, by_operation in contest.sorted_ns.items():
            summary = _summary(by_operation[operation])
            table.add_row(
                operation if name == ours else "",
                Text(name, style="green" if name.startswith("sandhost") else ""),
                *(microseconds(summary.get(key)) for key in ("p50", "p99", "p99.9", "max")),
                "" if name == ours else f"{contest.ratio(ours, name, operation):.1f}",
            )
    return table


def loading_line(cast: Cast) -> str:
    """Say what was loaded and how long it took."""
    names = ", ".join(cast.plugins)
    return f"loaded {names} in {format_ns(sum(cast.load_ns.values()))}"
