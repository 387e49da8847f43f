"""What collecting costs on the real handle heap: when it is forced, in steady state, and beside releasing by hand.

    python benchmarks/collecting.py            # about a minute, into benchmarks/results/
    python benchmarks/collecting.py --quick    # a rough look

Writes collecting.json and, where matplotlib is installed, collecting.png. Times are by the clock, of one
thread of Python's; the marker has a thread of its own, so on a machine that is busy with others its share is
smaller than what it is allowed. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

from common import RESULTS, Claim, Row, median, summary_us

import sandhost
from sandhost.bench.machine import describe
from sandhost.gc.adaptive import AdaptivePercent
from sandhost.gc.collector import Collector
from sandhost.gc.guards import ForcedBudget
from sandhost.gc.pacer import Pacer
from sandhost.gc.trace import Cycle

_WRITES = 100_000
_EVERY = 100
_RING = 8192
"""What the guest holds: one object a slot of 8 bytes of its one wasm page."""
_CORES = 2

_WRITER = b"""(module
  (import "env" "open" (func $open (param i32) (result i64)))
  (memory (export "memory") 1)
  (func (export "write") (param $slot i32)
    (i64.store (i32.shl (local.get $slot) (i32.const 3)) (call $open (i32.const 1024)))))"""

_TURNOVER = Path(__file__).resolve().parents[1] / "guests" / "wat" / "turnover.wat"
_CELLS, _GUESTS, _WORK, _AT_ONCE = 60_000, 4, 400, 1000
_HUNGRY, _UNTENDED = 4, 20_000

_PLUGIN = """(module
  (import "env" "open" (func $open (param i32) (result i64)))
  (import "env" "read" (func $read (param i64) (result i32)))
  {imports}
  (memory (export "memory") 1)
  (func (export "run") (param $count i32) (local $one i64)
    (loop $again
      (local.set $one (call $open (i32.const 16384)))
      (drop (call $read (local.get $one)))
      {release}
      (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))))"""
_RELEASE = '(import "sandhost" "release" (func $release (param i64) (result i32)))'
_WAYS = {
    "released by hand": {"imports": _RELEASE, "release": "(drop (call $release (local.get $one)))"},
    "by the collector": {"imports": "", "release": ""},
    "at the end only": {"imports": _RELEASE, "release": ""},
}


class Table:
    """What guests open here."""

    def __init__(self, size: int) -> None:
        self.bytes = bytes(size)


@contextmanager
def _host(
    cycles: list[Cycle], *, adaptive: bool = False, budget: ForcedBudget | None = None
) -> Iterator[tuple[sandhost.Host, Collector]]:
    """Give a host whose guests open and read tables, and a collector of our own over its handles."""
    with sandhost.Host() as host:
        host.gc.close()
        collector = Collector(
            host.handles,
            Pacer(cores=_CORES),
            adaptive=AdaptivePercent() if adaptive else None,
            budget=budget,
            trace=cycles.append,
        )
        host.handles.kind(Table, size=lambda table: len(table.bytes))

        @host.function("env", "open")
        def open_table(size: int) -> sandhost.Handle[Table]:
            return Table(size)

        @host.function("env", "read")
        def read_table(table: sandhost.Handle[Table]) -> int:
            return table.bytes[0]

        collector.start()
        try:
            yield host, collector
        finally:
            collector.close()


# ---- (a) forced collections ----


def writes(mode: str, count: int) -> dict[str, Any]:
    """Time each of so many writes; each is a host call that opens an object, and drops another."""
    cycles: list[Cycle] = []
    forced = mode.startswith("forced")
    budget = ForcedBudget(10**9)  # what it says about this is another matter
    with _host(cycles, adaptive=mode == "adaptive", budget=budget) as (host, collector):
        with host.load(_WRITER).spawn() as guest:
            write = guest.func("write")
            for slot in range(_RING):
                write(slot)
            collector.collect()
            del cycles[:]
            took = []
            for number in range(1, count + 1):
                begun = perf_counter_ns()
                write(number % _RING)
                if forced and number % _EVERY == 0:
                    collector.collect()
                took.append(perf_counter_ns() - begun)
        collections = len(cycles)
    return {**summary_us(took), "mean": sum(took) / len(took) / 1000, "collections": collections}


def forced_or_not(quick: bool) -> Row:
    """Row 2.1 of the mechanisms: what forcing costs."""
    count, rounds = (_WRITES // 5, 1) if quick else (_WRITES, 3)
    modes = ("automatic", "adaptive", f"forced every {_EVERY}")
    runs = {mode: [] for mode in modes}
    for _ in range(rounds):
        for mode in modes:
            runs[mode].append(writes(mode, count))
    table = {
        mode: {key: median([run[key] for run in each]) for key in each[0]}
        for mode, each in runs.items()
    }
    print(f"{'':20}{'mean':>10}{'p99':>10}{'p99.9':>10}  µs   collections")
    for mode, figures in table.items():
        times = "".join(f"{figures[key]:>10,.1f}" for key in ("mean", "p99", "p99.9"))
        print(f"{mode:20}{times}  {figures['collections']:>15,.0f}", flush=True)
    mean = table[modes[2]]["mean"] / table["automatic"]["mean"]
    claim = Claim("mean of a write, forced to automatic", mean, "times", 1, at_most=False)
    return Row(f"{count:,} writes", "median of rounds", [claim], {"modes": table})


# ---- (b) steady load ----


@contextmanager
def _hungry(threads: int) -> Iterator[None]:
    """Have so many threads of Python's compute, each of which keeps the interpreter's lock as long as it may."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    hungry = [threading.Thread(target=compute) for _ in range(threads)]
    for thread in hungry:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in hungry:
            thread.join()


def _turn_over(
    limited: bool, seconds: float, *, at_once: int = _AT_ONCE, hungry: int = 0
) -> dict[str, Any]:
    cycles: list[Cycle] = []
    with _host(cycles) as (host, collector), _hungry(hungry):
        plugin = host.load(_TURNOVER)
        guests = [plugin.spawn() for _ in range(_GUESTS)]
        for guest in guests:
            guest.call("fill", _CELLS)
            guest.call("replace", 0, _CELLS, _WORK)  # as large as they will be
        collector.collect()
        held = host.handles.figures().live_bytes
        limit = held * 3 // 2 if limited else None
        collector.memory_limit = limit
        del cycles[:]
        curve: list[tuple[float, int]] = []
        begun, at, done = perf_counter(), 0, 0
        while perf_counter() - begun < seconds:
            for guest in guests:
                guest.call("replace", at, at_once, _WORK)
                curve.append((perf_counter() - begun, host.handles.figures().live_bytes))
            at = (at + at_once) % _CELLS
            done += at_once * len(guests)
        late = cycles[2:]  # the first ones teach the pacer
        for guest in guests:
            guest.close()
    marking_s = sum(c.mark_s for c in late)
    core_s = marking_s * _CORES / 100
    beyond = sorted(100 * (c.peak_bytes / c.goal_bytes - 1) for c in late)
    since = sorted(curve)[len(curve) // 5 :]
    return {
        "cycles": len(late),
        "replaced_per_s": done / seconds,
        "held_bytes": held,
        "limit_bytes": limit,
        "goal_bytes": median([c.goal_bytes for c in late]),
        "utilization_percent": sum(c.assist_s + c.background_s for c in late) / core_s,
        "assist_percent": sum(c.assist_s for c in late) / core_s,
        "of_all_time_percent": 100
        * sum(c.assist_s + c.background_s + c.sweep_s for c in late)
        / (seconds * _CORES),
        "beyond_goal_percent": {"median": median(beyond), "worst": max(beyond, key=abs)},
        "longest_stop_us": late[-1].longest_stop_ns / 1000,
        "peak_bytes": max(*(live for _, live in since), *(c.peak_bytes for c in late)),
        "curve": [(round(s, 4), live) for s, live in curve[: len(curve) // 4 : 2]],
    }


def _middle(runs: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """Return the run with the median of a figure, and that figure of all."""
    ascending = sorted(runs, key=lambda run: run[key])
    return {**ascending[len(runs) // 2], f"{key}_of_all": [run[key] for run in ascending]}


def steady(quick: bool) -> list[Row]:
    """Turn a heap over at a steady rate: what the collector takes, and where the heap ends."""
    seconds = 3.0 if quick else 6.0
    rounds = 1 if quick else 3
    free = _middle([_turn_over(False, seconds) for _ in range(rounds)], "utilization_percent")
    limited = _middle([_turn_over(True, seconds) for _ in range(rounds)], "peak_bytes")
    crowded = _middle(
        [_turn_over(True, seconds, at_once=_UNTENDED, hungry=_HUNGRY) for _ in range(rounds)],
        "peak_bytes",
    )
    took = free["utilization_percent"]
    rows = [
        Row(
            f"a steady load, {_GUESTS} guests with {_CELLS:,} handles each",
            f"the median of {rounds} runs of {seconds:g} s; of both cores while marking; without the first two cycles",
            [
                Claim("collector, off 25 %", abs(took - 25), "points", 2),
                Claim(
                    "end of a cycle off its goal",
                    abs(free["beyond_goal_percent"]["median"]),
                    "%",
                    5,
                ),
            ],
            free,
        ),
        Row(
            "the same, with a memory limit of 1.5 times what is held",
            f"the median of {rounds} runs of {seconds:g} s; without the first fifth",
            [
                Claim(
                    "peak beyond the limit",
                    100 * (limited["peak_bytes"] / limited["limit_bytes"] - 1),
                    "%",
                    3,
                ),
            ],
            limited,
        ),
        Row(
            f"the same limit, beside {_HUNGRY} threads of Python's that compute without a pause",
            f"the median of {rounds} runs of {seconds:g} s; {_UNTENDED:,} handles a call, without Python's lock",
            [
                Claim(
                    "peak beyond the limit",
                    100 * (crowded["peak_bytes"] / crowded["limit_bytes"] - 1),
                    "%",
                    3,
                ),
            ],
            crowded,
        ),
    ]
    print(
        f"collector: {took:.1f} % of {_CORES} cores while marking, {free['assist_percent']:.1f} of it assists"
    )
    return rows


# ---- (e) who releases ----


def _release(way: str, count: int) -> dict[str, Any]:
    cycles: list[Cycle] = []
    with _host(cycles) as (host, _):
        plugin = host.load(_PLUGIN.format(**_WAYS[way]).encode())
        guest = plugin.spawn(limits=sandhost.Limits(handle_memory="1 GiB"))
        begun, peak = perf_counter(), 0
        for _ in range(count // 100):
            guest.call("run", 100)
            peak = max(peak, host.handles.figures().live_bytes)
        took = perf_counter() - begun
        begun = perf_counter()
        guest.close()
        closed = perf_counter() - begun
        host.handles.run_finalizers()
        dropped = perf_counter() - begun
        assert host.handles.figures().live_cells == 0
    return {
        "objects_per_s": count / took,
        "peak_bytes": peak,
        "close_us": closed * 1e6,
        "close_and_drop_us": dropped * 1e6,
        "cycles": len(cycles),
    }


def who_releases(quick: bool) -> Row:
    """Run the same plugin three ways."""
    count, rounds = (4_000, 1) if quick else (20_000, 5)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in _WAYS}
    for _ in range(rounds):
        for way in _WAYS:
            runs[way].append(_release(way, count))
    table = {
        way: {key: median([run[key] for run in each]) for key in each[0]}
        for way, each in runs.items()
    }
    print(f"{'':20}{'objects/s':>12}{'peak MiB':>10}{'close µs':>12}{'and drop':>12}")
    for way, figures in table.items():
        print(
            f"{way:20}{figures['objects_per_s']:>12,.0f}{figures['peak_bytes'] / 2**20:>10.1f}"
            f"{figures['close_us']:>12,.0f}{figures['close_and_drop_us']:>12,.0f}"
        )
    ratio = table["by the collector"]["peak_bytes"] / table["at the end only"]["peak_bytes"]
    claim = Claim("peak by the collector, to leaking", 100 * ratio, "%", 50)
    how = f"{count:,} objects of 16 KiB; median of {rounds} rounds"
    return Row("who releases", how, [claim], {"ways": table})


def main() -> int:
    """Run the benchmark; return an exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    rows = [forced_or_not(quick), *steady(quick), who_releases(quick)]
    for row in rows:
        print(row.what)
        for claim in row.claims:
            print(f"  {'' if claim.reached else 'MISSED '}{claim.what}: {claim}")
    result = {
        "schema": "sandhost-collecting/1",
        "machine": describe(),
        "quick": quick,
        "rows": [row.as_json() for row in rows],
    }
    if not quick:
        (RESULTS / "collecting.json").write_text(json.dumps(result) + "\n")
        try:
            from collecting_picture import draw
        except ImportError:
            print("no picture: matplotlib is not installed")
        else:
            draw(result, RESULTS / "collecting.png")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
