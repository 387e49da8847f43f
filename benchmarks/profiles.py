"""What it costs to look: a capture of all handles, and how long it keeps a guest from going on.

    python benchmarks/profiles.py            # two minutes, into benchmarks/results/
    python benchmarks/profiles.py --quick

The heap by itself is `profiles.c`, built with the sources of native/; it needs a C compiler. From Python the same is
taken of a host, made into a profile and packed. How long a guest is kept is what the capture computes while it holds
the heap's lock: by the clock, on a busy machine, the longest waits are the scheduler's, and stand in the record beside
those of the same operations while nobody looks. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HERE, RESULTS, Claim, Row, median

import sandhost
from sandhost.bench.machine import describe
from sandhost.observe import capture
from sandhost.observe.pprof import encode


def build() -> Path:
    """Compile profiles.c with the native sources."""
    native = HERE.parent / "native"
    out = Path(tempfile.mkdtemp(prefix="profiles")) / "profiles"
    sources = [path for path in native.glob("*.c") if path.name != "python.c"]
    flags = ["-std=gnu11", "-O3", "-DNDEBUG", "-D_GNU_SOURCE", "-I", native]
    command = ["cc", *flags, HERE / "profiles.c", *sources, "-o", out, "-lpthread", "-ldl"]
    subprocess.run(command, check=True)
    return out


def heap_alone(program: Path, cells: int, seconds: int, rounds: int) -> Row:
    """Run the C program several times."""
    runs: list[dict[str, Any]] = [
        json.loads(
            subprocess.run(
                [program, str(cells), str(seconds)], check=True, capture_output=True
            ).stdout
        )
        for _ in range(rounds)
    ]
    held = max(run["longest_hold_cpu_ns"] for run in runs) / 1e6
    claims = [
        Claim("a capture", median([run["capture_ns"]["p50"] for run in runs]) / 1e9, "s", 1),
        Claim("its longest hold of what guests wait for, CPU time", held, "ms", 1),
    ]
    how = "profiles.c: one guest without pause, captures one after the other; median of runs"
    return Row(f"{cells:,} handles, a list of 65,000 among them", how, claims, {"runs": runs})


def from_python(cells: int, rounds: int) -> Row:
    """Capture a host's handles, make a profile of it, and pack that."""
    took: dict[str, list[float]] = {"capture": [], "profile": [], "packed": []}
    with sandhost.Host(cache=False) as host:
        heap, thing = host.handles, object()
        host.gc.close()
        for number in range(cells // 1000):
            shelf = heap.new(thing, size=100, label=f"shelf {number % 50}")
            for _ in range(999):
                one = heap.new(thing, size=100)
                heap.link(shelf, one)
                heap.release(one)
        for _ in range(rounds):
            begun = time.perf_counter()
            taken = capture(host)
            captured = time.perf_counter()
            profile = taken.profile()
            made = time.perf_counter()
            data = encode(profile)
            took["capture"].append(captured - begun)
            took["profile"].append(made - captured)
            took["packed"].append(time.perf_counter() - made)
            assert len(taken) == cells
            del taken
    seconds = {name: median(values) for name, values in took.items()}
    detail = {"seconds": seconds, "samples": len(profile.samples), "bytes": len(data)}
    claim = Claim("capture, profile and file", sum(seconds.values()), "s", 1)
    return Row(f"{cells:,} handles, from Python", "median of rounds", [claim], detail)


def main() -> int:
    """Run the benchmark; return an exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    program = build()
    seconds, rounds = (1, 1) if quick else (4, 5)
    rows = [heap_alone(program, size, seconds, rounds) for size in (100_000, 1_000_000)]
    rows.append(from_python(1_000_000, 3 if quick else 9))
    for row in rows:
        print(row.what)
        for claim in row.claims:
            print(f"  {'' if claim.reached else 'MISSED '}{claim.what}: {claim}")
    result = {"machine": describe(), "quick": quick, "rows": [row.as_json() for row in rows]}
    if not quick:
        (RESULTS / "profiles.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
