"""Pacing policies on five loads, in simulated time: memory against collecting.

    python benchmarks/pacing.py [--quick] [--out FOLDER]

A program of four cores allocates cells of 64 KiB (give or take half) and holds a part of them; one
core marks 1 GB a second. It is simulated over a real graph with a real mark-sweep (tests/helpers/
simheap.py), so the figures do not depend on the machine that runs this.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, median
from pacing_picture import draw

from sandhost.bench.machine import describe
from sandhost.gc.adaptive import AdaptivePercent
from sandhost.gc.collector import Collector
from sandhost.gc.pacer import Pacer
from sandhost.gc.trace import Cycle
from sandhost.gc.triggers import Policy, View

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.simheap import Load, SimHeap, simulate

_MIB = 1 << 20
_CORES = 4
_SECONDS = 30.0
_SAMPLE_S = 0.04
_SETTLED_S = 3.0

LOADS = {
    "steady": Load(lambda _: 30e6, lambda _: 60 * _MIB),
    "step": Load(
        lambda t: 60e6 if 10 <= t < 20 else 20e6,
        lambda t: (150 if 10 <= t < 20 else 50) * _MIB,
    ),
    "sawtooth": Load(lambda _: 30e6, lambda t: (20 + 100 * (t % 6) / 6) * _MIB),
    "burst": Load(
        lambda t: 150e6 if t % 5 < 0.5 else 10e6,
        lambda t: (140 if t % 5 < 0.5 else 40) * _MIB,
    ),
    "slow leak": Load(lambda _: 20e6, lambda t: (40 + 4 * t) * _MIB),
}
"""Rates are of one core. What is held follows as fast as the program allocates."""


def _doubled(view: View) -> bool:
    return view.live_bytes >= max(2 * view.marked_bytes, 4 * _MIB)


def _fixed(heap: SimHeap, trace: Callable[[Cycle], None]) -> Collector:
    """Begin a cycle when the heap has doubled, and let it take the time that it takes."""
    collector = Collector(heap, Pacer(cores=_CORES), clock=heap.clock, thread=None, trace=trace)
    collector.triggers.remove("heap goal")
    collector.triggers.add(Policy("doubled", _doubled, every=0.0005))
    return collector


def _paced(heap: SimHeap, trace: Callable[[Cycle], None]) -> Collector:
    return Collector(heap, Pacer(cores=_CORES), clock=heap.clock, thread=None, trace=trace)


def _adaptive(heap: SimHeap, trace: Callable[[Cycle], None]) -> Collector:
    return Collector(
        heap,
        Pacer(cores=_CORES),
        adaptive=AdaptivePercent(),
        clock=heap.clock,
        thread=None,
        trace=trace,
    )


POLICIES = {"fixed 100": _fixed, "pacer": _paced, "pacer + adaptive": _adaptive}


def run(load: str, policy: str, seed: int, seconds: float) -> dict[str, Any]:
    """Simulate one load under one policy; return what came of it, and how the heap went."""
    heap = SimHeap(LOADS[load], cores=_CORES, seed=seed)
    cycles: list[Cycle] = []
    collector = POLICIES[policy](heap, cycles.append)
    times: list[float] = []
    live: list[float] = []
    held: list[float] = []

    def sample() -> None:
        if not times or heap.now_s >= times[-1] + _SAMPLE_S:
            times.append(heap.now_s)
            live.append(heap.live / _MIB)
            held.append(heap.rooted_bytes / _MIB)

    heap.on_time = sample
    simulate(heap, collector, seconds)
    settled = [k for k, t in enumerate(times) if t >= _SETTLED_S]
    late = [c for c in cycles if c.began_s >= _SETTLED_S]
    marking_s = sum(c.mark_s for c in late)
    percents = [c.percent for c in late if c.percent is not None]
    return {
        "cycles": len(late),
        "peak_mib": max(live[k] for k in settled),
        "mean_mib": sum(live[k] for k in settled) / len(settled),
        "held_mib": sum(held[k] for k in settled) / len(settled),
        "collecting_percent": 100 * collector.stats().collecting_s / (heap.now_s * _CORES),
        "assist_percent": 100 * sum(c.assist_s for c in late) / (heap.now_s * _CORES),
        "utilization_percent": 100
        * sum(c.utilization * c.mark_s for c in late)
        / max(marking_s, 1e-9),
        "beyond_goal_percent": _beyond(policy, heap, cycles),
        "percent": [min(percents), max(percents)] if percents else None,
        "allocated_mib": heap.alloc_bytes / _MIB,
        "curve": {"s": times, "live_mib": live, "held_mib": held} if seed == 1 else None,
    }


def _beyond(policy: str, heap: SimHeap, cycles: list[Cycle]) -> float:
    """Return by how much the worst cycle, once settled, ended beyond the goal that it had."""
    worst, left = 0.0, 0
    for cycle, (live, goal) in zip(cycles, heap.at_mark_end, strict=False):
        wanted = max(2 * left, 4 * _MIB) if policy == "fixed 100" else goal
        left = cycle.live_after_bytes
        if cycle.began_s >= _SETTLED_S:
            worst = max(worst, 100 * (live / wanted - 1))
    return worst


_COLUMNS = {
    "cycles": "cycles",
    "mean_mib": "mean MiB",
    "peak_mib": "peak MiB",
    "collecting_percent": "collecting %",
    "assist_percent": "assists %",
    "utilization_percent": "marking %",
    "beyond_goal_percent": "worst beyond goal %",
}


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description="Pacing policies on five loads, simulated.")
    parser.add_argument("--quick", action="store_true", help="one seed instead of five")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    seeds = range(1, 2 if options.quick else 6)
    rows = []
    print(f"{'':11}{'':18}" + "".join(f"{name:>20}" for name in _COLUMNS.values()))
    for load in LOADS:
        for policy in POLICIES:
            runs = [run(load, policy, seed, _SECONDS) for seed in seeds]
            middle = {key: median([r[key] for r in runs]) for key in _COLUMNS}
            ranges = {
                key: [min(r[key] for r in runs), max(r[key] for r in runs)] for key in _COLUMNS
            }
            figures = "".join(f"{middle[key]:>20.3g}" for key in _COLUMNS)
            print(f"{load:11}{policy:18}{figures}", flush=True)
            rows.append(
                {
                    "load": load,
                    "policy": policy,
                    **middle,
                    "held_mib": median([r["held_mib"] for r in runs]),
                    "ranges": ranges,
                    "percent": runs[0]["percent"],
                    "curve": {key: _thin(xs) for key, xs in runs[0]["curve"].items()},
                }
            )
    document = {
        "schema": "sandhost-pacing/1",
        "machine": describe(),
        "quick": options.quick,
        "simulated": {"cores": _CORES, "seconds": _SECONDS, "seeds": len(seeds)},
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "pacing.json").write_text(json.dumps(document) + "\n")
    draw(document, options.out / "pacing.png")


def _thin(values: list[float]) -> list[float]:
    return [round(value, 1) if value >= 40 else round(value, 2) for value in values]


if __name__ == "__main__":
    main()
