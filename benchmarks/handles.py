"""What handles cost: to create, pass and release one over a host call; and the heap by itself, in C.

    python benchmarks/handles.py            # some three minutes, into benchmarks/results/
    python benchmarks/handles.py --quick

The heap by itself is `handles.c`, built with the sources of native/; it needs a C compiler. `layout.c` has the
accesses of the heap to its cells, as they lie and as one struct; cachegrind counts their cache misses, where
valgrind is installed, in caches of 32 KiB and 1 MiB whatever the machine's are. Rates are per
second of CPU time. Waits are by the clock: on a busy machine the longest are the scheduler's, which is
why they stand beside the same operations without a collector, and why each that took more than 200 µs is
attributed, by what the kernel counts of the thread and of the marker. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from time import thread_time_ns
from typing import Any

from common import HERE, RESULTS, Claim, Row, in_turn, median

import sandhost
from sandhost.bench.machine import describe

_CHURN = """(module
  (import "env" "open" (func $open (param i32) (result i64)))
  (import "env" "read" (func $read (param i64) (result i32)))
  (import "sandhost" "release" (func $release (param i64) (result i32)))
  (func (export "run") (param $count i32) (local $handle i64)
    (loop $again
      (local.set $handle (call $open (local.get $count)))
      (drop (call $read (local.get $handle)))
      {release}
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br_if $again (local.get $count)))))"""
_RELEASE = "(drop (call $release (local.get $handle)))"


class Thing:
    """What a handle stands for."""


def over_the_call(quick: bool) -> Row:
    """Create, pass and release a handle, less the same two host calls with plain integers."""
    count, rounds = (20_000, 5) if quick else (100_000, 15)
    thing = Thing()
    with sandhost.Host() as host:
        host.handles.kind(Thing, size=64)

        @host.function("env", "open")
        def open_plain(number: int) -> int:
            return number

        @host.function("env", "read")
        def read_plain(_number: int) -> int:
            return 0

        plain = host.load(_CHURN.format(release="").encode())

        @host.function("env", "open")
        def open_thing(_number: int) -> sandhost.Handle[Thing]:
            return thing

        @host.function("env", "read")
        def read_thing(_thing: sandhost.Handle[Thing]) -> int:
            return 0

        handles = host.load(_CHURN.format(release=_RELEASE).encode())
        with plain.spawn() as without, handles.spawn() as with_handles:

            def each(guest: sandhost.Guest) -> float:
                begun = thread_time_ns()
                guest.call("run", count)
                taken = (thread_time_ns() - begun) / count / 1000
                host.handles.run_finalizers()
                return taken

            took = in_turn(
                {"integers": lambda: each(without), "handles": lambda: each(with_handles)}, rounds
            )
    pairs = [h - i for h, i in zip(took["handles"], took["integers"])]
    detail = {name: median(values) for name, values in took.items()}
    claim = Claim("create + pass + release", median(pairs), "µs", 1.5)
    return Row("a handle, over the host calls", "CPU time; median of rounds", [claim], detail)


def build() -> Path:
    """Compile handles.c with the native sources."""
    native = HERE.parent / "native"
    out = Path(tempfile.mkdtemp(prefix="handles")) / "handles"
    sources = [path for path in native.glob("*.c") if path.name != "python.c"]
    flags = ["-std=gnu11", "-O3", "-DNDEBUG", "-D_GNU_SOURCE", "-I", native]
    command = ["cc", *flags, HERE / "handles.c", *sources, "-o", out, "-lpthread", "-ldl"]
    subprocess.run(command, check=True)
    return out


def heap_alone(program: Path, cells: int, rounds: int) -> Row:
    """Run the C program several times."""
    runs: list[dict[str, Any]] = [
        json.loads(subprocess.run([program, str(cells)], check=True, capture_output=True).stdout)
        for _ in range(rounds)
    ]
    mark = median([run["mark_edges_per_s"]["random"] for run in runs]) / 1e6
    scan = median([min(run["scan_bytes_per_ns"].values()) for run in runs])
    waits = "operations_while_cycles_run"
    stop = median([run[waits]["p999_ns"] for run in runs]) / 1000
    late = [run[waits]["over_200_us"] for run in runs]
    ours = sum(each["lock"] + each["computing"] for each in late)
    print(
        f"{cells:,} handles: {sum(each['count'] for each in late)} operations over 200 µs, of which "
        f"{sum(each['ready_without_a_processor'] for each in late)} had no processor, and for "
        f"{sum(each['lock_of_a_marker_without_a_processor'] for each in late)} the marker had none; without "
        f"cycles {sum(run['operations_alone']['over_200_us']['count'] for run in runs)}"
    )
    claims = [
        Claim("native bytes a handle", runs[0]["bytes_per_handle"], "bytes", 64),
        Claim("marking, random edges", mark, "million/s", 20, at_most=False),
        Claim("scan of memory", scan, "GB/s", 5, at_most=False),
        Claim("an operation while cycles run, p99.9", stop, "µs", 200),
        Claim("over 200 µs and not the scheduler's, in 2 million", ours / rounds, "operations", 2),
    ]
    return Row(
        f"the heap with {cells:,} handles", "handles.c; median of runs", claims, {"runs": runs}
    )


_CACHES = ("--cache-sim=yes", "--D1=32768,8,64", "--I1=32768,8,64", "--LL=1048576,16,64")
_PHASES = {
    "check": "check a handle",
    "mark": "mark along an edge",
    "walk": "walk past a cell",
    "sweep": "sweep a cell",
    "churn": "make and free one",
}
_ACCESSES = 200_000
"""Of each phase, as layout.c has them."""


def layout() -> Row:
    """Count the cache misses of the hot and cold halves, and of one struct of all fields."""
    folder = Path(tempfile.mkdtemp(prefix="layout"))
    misses: dict[str, dict[str, dict[str, float]]] = {}
    sizes: dict[str, int] = {}
    for name, define in (("one struct", ["-DWHOLE"]), ("hot and cold", [])):
        program = folder / "layout"
        flags = ["-std=gnu11", "-O2", "-D_GNU_SOURCE", *define, "-I", HERE.parent / "native"]
        subprocess.run(["cc", *flags, HERE / "layout.c", "-o", program], check=True)
        done = subprocess.run([program], check=True, capture_output=True, text=True)
        sizes[name] = int(done.stdout.split()[0])
        none = _simulated(program, "none")
        misses[name] = {}
        for phase, title in _PHASES.items():
            counted = _simulated(program, phase)
            misses[name][title] = {k: (counted[k] - none[k]) / _ACCESSES for k in counted}
    walks = [misses[name]["walk past a cell"]["first"] for name in ("hot and cold", "one struct")]
    claims = [
        Claim("bytes a handle", sizes["hot and cold"], "bytes", sizes["one struct"]),
        Claim("misses of a walk, to one struct", 100 * walks[0] / walks[1], "%", 50),
    ]
    how = "layout.c under cachegrind: misses of 200,000 accesses"
    detail = {"bytes": sizes, "misses": misses}
    return Row("hot and cold halves against one struct", how, claims, detail)


def _simulated(program: Path, phase: str) -> dict[str, int]:
    out = program.with_suffix(".cachegrind")
    tool = ["valgrind", "--quiet", "--tool=cachegrind", *_CACHES, f"--cachegrind-out-file={out}"]
    subprocess.run([*tool, program, phase], check=True, capture_output=True)
    lines = dict(line.split(": ", 1) for line in out.read_text().splitlines() if ": " in line)
    counts = dict(zip(lines["events"].split(), map(int, lines["summary"].split())))
    return {"first": counts["D1mr"] + counts["D1mw"], "last": counts["DLmr"] + counts["DLmw"]}


def main() -> int:
    """Run the benchmark; return an exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough look")
    quick = parser.parse_args().quick
    program = build()
    sizes = (10_000, 1_000_000) if quick else (10_000, 100_000, 1_000_000, 10_000_000)
    rows = [over_the_call(quick)]
    rows += [heap_alone(program, size, 1 if quick or size > 1_000_000 else 3) for size in sizes]
    if shutil.which("valgrind"):
        rows.append(layout())
    else:
        print("no cache misses: valgrind is not installed")
    for row in rows:
        print(row.what)
        for claim in row.claims:
            print(f"  {'' if claim.reached else 'MISSED '}{claim.what}: {claim}")
    result = {"machine": describe(), "quick": quick, "rows": [row.as_json() for row in rows]}
    if not quick:
        (RESULTS / "handles.json").write_text(json.dumps(result, indent=2) + "\n")
        try:
            from handles_picture import draw
        except ImportError:
            print("no picture: matplotlib is not installed")
        else:
            draw(result, RESULTS / "handles.png")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
