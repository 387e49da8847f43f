"""The figures to reach, measured in one run beside the peers.

    python benchmarks/figures.py [--quick] [--only WORD …] [--out FOLDER]

Writes figures.json and figures.png into benchmarks/results/, or into FOLDER. Needs a C compiler
(c_pooling.c), and matplotlib for the picture. README.md says how each figure is obtained.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import rows
from common import RESULTS, Row, three_digits
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sandhost.bench.machine import describe

MEASURES: dict[str, Callable[[bool], Row | list[Row]]] = {
    "call": rows.bound_function,
    "host": rows.host_function,
    "cycle": rows.cycles,
    "close": rows.close_under_load,
    "threads": rows.two_threads,
    "lives": rows.whole_lives,
    "live": rows.many_guests,
    "million": rows.million_cycles,
    "import": rows.import_time,
}
IN_A_FRESH_PROCESS = {"live", "million"}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a rough look, in under a minute")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go")
    options = parser.parse_args()
    console = Console()
    started = time.monotonic()
    table: list[Row] = []
    machine = describe()
    for name in options.only:
        with console.status(f"measuring: {name}"):
            measured = measure(name, options.quick)
        table += measured if isinstance(measured, list) else [measured]
    seconds = time.monotonic() - started
    print_table(console, table)
    data = {
        "schema": "sandhost-figures/1",
        "machine": machine,
        "quick": options.quick,
        "seconds": round(seconds, 1),
        "rows": [row.as_json() for row in table],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "figures.json").write_text(json.dumps(data, indent=1) + "\n")
    try:
        from figures_picture import draw
    except ImportError:
        console.print("no picture: matplotlib is not installed", style="yellow")
    else:
        draw(data, options.out / "figures.png")
    console.print(f"{seconds:.0f} s; figures.json and figures.png are in {options.out}")
    sys.exit(not all(row.reached for row in table))


def measure(name: str, quick: bool) -> Row | list[Row]:
    """Measure one group of rows; those about memory in a fresh process, whose heap is nobody's."""
    if name not in IN_A_FRESH_PROCESS:
        return MEASURES[name](quick)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(MEASURES[name], quick).result()


def print_table(console: Console, table: list[Row]) -> None:
    """Print every claim with its verdict."""
    out = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for heading, right in (("", 0), ("", 0), ("measured", 1), ("to reach", 1), ("", 0)):
        out.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for row in table:
        for number, claim in enumerate(row.claims):
            out.add_row(
                row.what if number == 0 else "",
                claim.what,
                f"{three_digits(claim.measured)} {claim.unit}",
                f"{'≤' if claim.at_most else '≥'} {claim.limit:,g}",
                Text("yes", "green") if claim.reached else Text("no", "bold red"),
            )
    console.print(out)
    for row in table:
        if "others" in row.detail:
            alone = row.detail["us"]["alone"]
            console.print(
                f"with no other thread, the same closes took {alone['p50']:.3g} µs (p50) and "
                f"{alone['p99.9']:,.0f} µs (p99.9)",
                style="dim",
            )
        if "two_c_programs_to_one" in row.detail:
            console.print(
                f"just then, two C programs at once reached {row.detail['two_c_programs_to_one']:.2f}× "
                "one: what the machine had to give",
                style="dim",
            )


if __name__ == "__main__":
    main()
