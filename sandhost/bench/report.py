"""A run as tables for a terminal, 80 columns wide."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..units import format_bytes
from .checks import Check
from .compare import THRESHOLD, Comparison
from .contenders import OPERATIONS
from .kernel import PAGEMAP, ROLLUP
from .latency import PERCENTILES, percentile_name
from .results import Results, Row

__all__ = ["microseconds", "print_comparison", "print_results"]

_NS_PER_US = 1000


def microseconds(nanoseconds: float | None) -> str:
    """Return three digits of a time in microseconds, "–" where there is none."""
    if nanoseconds is None:
        return "–"
    value = nanoseconds / _NS_PER_US
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def print_results(console: Console, results: Results, *, full: bool) -> None:
    """Print machine, one table a case, the checks, and what was left out."""
    _print_machine(console, results)
    for rows in results.cases():
        console.print(_full_table(rows) if full else _case_table(rows))
    checked = [row for row in results.rows if row.check]
    if checked:
        console.print(_check_table(checked))
        _print_check_notes(console, results)
    for name, reason in results.left_out.items():
        console.print(f"[yellow]{name} left out:[/] {reason}", highlight=False)


def _print_machine(console: Console, results: Results) -> None:
    m = results.machine
    where = "virtual machine" if m["virtual"] else "bare metal, as far as the CPU says"
    repetitions, block_s = results.settings["repetitions"], results.settings["block_s"]
    console.print(
        f"{m['cpu']}, {m['cores']} cores usable, {where}\n"
        f"Linux {m['kernel']}, THP {m['transparent_hugepages']}, "
        f"governor {m['governor'] or 'not shown'}, load {m['load']} at the start\n"
        f"{m['python']}, sandhost {m['sandhost']}, wasmtime {m['wasmtime']}, "
        f"extism {m['extism'] or 'not installed'}\n"
        f"{repetitions} repetitions of {block_s:g} s each, contenders in turn, "
        f"{results.seconds:.0f} s in all\n"
        "Times in µs. unload: p50, p99, p99.9, max; the others: p50. k/s: thousand cycles\n"
        "a second; ×: so many times the fastest peer's.",
        style="dim",
        highlight=False,
    )


def _title(rows: list[Row]) -> str:
    row = rows[0]
    memory = f" · memory {format_bytes(row.memory_bytes)}" if row.memory_bytes else ""
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    return f"{row.plugin} · {row.label}{memory} · {threads}"


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
        padding=(0, 1, 0, 0),
    )


def _name(row: Row) -> Text:
    return Text(row.contender, style="green" if row.contender.startswith("sandhost") else "")


def _case_table(rows: list[Row]) -> Table:
    table = _table("\n" + _title(rows))
    table.add_column("", no_wrap=True)
    for heading in [
        "spawn",
        "call",
        "unload",
        "p99",
        "p99.9",
        "max",
        "reclaim",
        "cycle",
        "k/s",
        "×",
    ]:
        table.add_column(heading, justify="right", no_wrap=True)
    rates = {row.contender: row.median_of("cycles_per_s") or 0.0 for row in rows}
    peers = [rate for name, rate in rates.items() if not name.startswith("sandhost")]
    for row in rows:
        unload = row.summary("unload")
        rate = rates[row.contender]
        ours = row.contender.startswith("sandhost")
        table.add_row(
            _name(row),
            microseconds(row.summary("spawn").get("p50")),
            microseconds(row.summary("call").get("p50")),
            Text(microseconds(unload.get("p50")), style="bold"),
            microseconds(unload.get("p99")),
            microseconds(unload.get("p99.9")),
            microseconds(unload.get("max")),
            microseconds(row.summary("reclaim").get("p50")),
            microseconds(row.summary("cycle").get("p50")),
            microseconds(rate),
            f"{rate / max(peers):.1f}" if ours and peers else "",
        )
    return table


def _full_table(rows: list[Row]) -> Table:
    table = _table("\n" + _title(rows))
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for percent in PERCENTILES:
        table.add_column(percentile_name(percent), justify="right")
    table.add_column("max", justify="right")
    table.add_column("samples", justify="right")
    for operation in OPERATIONS:
        for row in rows:
            summary = row.summary(operation)
            if summary:
                table.add_row(
                    operation,
                    _name(row),
                    *(microseconds(summary[percentile_name(p)]) for p in PERCENTILES),
                    microseconds(summary["max"]),
                    f"{summary['samples']:,}",
                )
        table.add_section()
    return table


def _check_table(rows: list[Row]) -> Table:
    table = _table("\nWhat came back, by the kernel's counts")
    table.add_column("", no_wrap=True)
    for heading in ("workload", "alive", "back", "reported", "checked", "wrong"):
        table.add_column(
            heading, justify="left" if heading == "workload" else "right", no_wrap=True
        )
    for row in rows:
        check = row.check
        assert check is not None
        table.add_row(
            _name(row),
            row.label,
            format_bytes(check.batch_private_bytes),
            format_bytes(check.batch_back_bytes),
            "–" if check.batch_reported_bytes is None else format_bytes(check.batch_reported_bytes),
            f"{check.guests}" if check.guests else "–",
            _wrong(check),
        )
    return table


def _wrong(check: Check) -> Text:
    if not check.guests:
        return Text("–")
    return Text(f"{check.mismatches}", style="bold red" if check.mismatches else "green")


def _print_check_notes(console: Console, results: Results) -> None:
    console.print(
        f"alive, back: private bytes of the process by {ROLLUP} while "
        f"{results.settings['batch_guests']} guests live, and gone when all are closed; "
        "reported: as returned by close(). "
        f"checked, wrong: single guests whose every page, by {PAGEMAP} just before and after "
        "close, was held against its Reclaim. Checked guests are not timed.",
        style="dim",
        highlight=False,
    )
    for row in results.rows:
        if row.check and row.check.example:
            console.print(
                f"[bold red]{row.contender}, {row.label}:[/] {row.check.example}", highlight=False
            )


def print_comparison(console: Console, comparison: Comparison, old: str) -> None:
    """Print what changed since an earlier run, and how that was told."""
    console.print(f"\n[bold]Against {old}[/]", highlight=False)
    for difference in comparison.differences:
        console.print(f"[yellow]not the same machine or versions:[/] {difference}", highlight=False)
    if comparison.drift is not None:
        console.print(
            f"the peers, the yardstick, took {comparison.drift:.2f}× the time they took then",
            style="dim",
            highlight=False,
        )
    same = len(comparison.changes) - len(comparison.changed)
    if comparison.changed:
        table = _table("")
        for heading in ("", "workload", "threads", "figure", "then", "now", "×", ""):
            table.add_column(
                heading, justify="right" if heading in ("then", "now", "×") else "left"
            )
        for change in comparison.changed:
            shown = (lambda v: f"{v:,.0f}") if change.figure == "cycles_per_s" else microseconds
            table.add_row(
                change.contender,
                change.label,
                str(change.threads),
                change.figure.replace("_per_s", "/s"),
                shown(change.old),
                shown(change.new),
                f"{change.ratio:.2f}",
                Text(change.verdict, style="green" if change.verdict == "faster" else "red"),
            )
        console.print(table)
    console.print(
        f"{len(comparison.changed)} of {len(comparison.changes)} figures changed beyond noise, "
        f"{same} did not: changed means that no repetition's median of now lies among those of "
        f"then, and that the median moved by {THRESHOLD:.0%} or more, in plain time and relative to the "
        "peers of the same repetition.",
        highlight=False,
    )
