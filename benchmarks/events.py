"""What events and probes cost: the life of a guest, and a handle, with nobody listening and with a reader.

    python benchmarks/events.py             # some two minutes, into benchmarks/results/
    python benchmarks/events.py --quick

Times are CPU time of the thread that spawns, calls and closes, so that neither the reader nor a busy machine counts in
them; the reader's own time an event stands beside. Probes: the installed module, which has them, beside one that is
built here without (it needs cmake), in processes that run in turn. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import thread_time_ns
from typing import Any

import unwatched
from common import RESULTS, Claim, Row, in_turn, median

import sandhost
from sandhost.bench.machine import describe
from sandhost.bench.workload import guest_bytes

_MOST_SHARE = 3.0  # percent of the cycle, of all observation
_HANDLES = """(module
  (import "sandhost" "list_new" (func $new (result i64)))
  (import "sandhost" "release" (func $release (param i64) (result i32)))
  (func (export "run") (param $count i32)
    (loop $again
      (drop (call $release (call $new)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br_if $again (local.get $count)))))"""


@contextlib.contextmanager
def _reader(host: sandhost.Host, used: dict[str, int]) -> Iterator[None]:
    """Read in a thread, as `follow` does, and count events and what they cost."""
    over = threading.Event()

    def read() -> None:
        begun = thread_time_ns()
        last = False
        while not last:
            last = over.wait(0.02)
            used["events"] += len(host.events.read())
        used["ns"] += thread_time_ns() - begun

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _cycle(plugin: sandhost.Plugin, pages: int, count: int) -> float:
    begun = thread_time_ns()
    for _ in range(count):
        guest = plugin.spawn()
        guest.call("dirty", pages)
        guest.close()
    return (thread_time_ns() - begun) / count


def cycles(quick: bool) -> Row:
    """Spawn, call, close, from Python: nobody listens, or all ordinary kinds and a reader."""
    count, rounds = (1000, 11) if quick else (3000, 41)
    used = {"events": 0, "ns": 0}
    detail: dict[str, Any] = {}
    claims = []
    with sandhost.Host() as host:
        plugin = host.load(guest_bytes("bench"))
        _cycle(plugin, 16, 2000)

        def off(pages: int) -> Callable[[], float]:
            return lambda: _cycle(plugin, pages, count)

        def on(pages: int) -> Callable[[], float]:
            def run() -> float:
                host.events.enable()
                with _reader(host, used):
                    taken = _cycle(plugin, pages, count)
                host.events.disable()
                return taken

            return run

        for pages in (0, 16):
            results = in_turn({"off": off(pages), "on": on(pages)}, rounds)
            share = _share(results["off"], results["on"])
            detail[f"{pages} pages"] = {
                "off_ns": median(results["off"]),
                "on_ns": median(results["on"]),
                "share_percent": share,
            }
            claims.append(Claim(f"events on, {pages} pages", share, "% of the cycle", _MOST_SHARE))
        detail["lost"] = host.events.lost
    detail["reader_ns_an_event"] = used["ns"] / max(1, used["events"])
    detail["events_a_cycle"] = used["events"] / (2 * rounds * count)
    return Row("a guest's life with events", "CPU time of its thread", claims, detail)


def _share(before: list[float], after: list[float]) -> float:
    """The median of the rounds' own ratios, as a share in percent."""
    return (median([b / a for a, b in zip(before, after)]) - 1) * 100


def handles(quick: bool) -> Row:
    """A list that is made and released at once, from wasm: the two events that must be named."""
    count, rounds = (
        4000,
        51 if quick else 501,
    )  # no more than a ring holds, so that all are recorded
    read = 0
    with sandhost.Host() as host, host.load(_HANDLES.encode()).spawn() as guest:
        run = guest.func("run")

        def measure() -> float:
            begun = thread_time_ns()
            run(count)
            return (thread_time_ns() - begun) / count

        def on() -> float:
            nonlocal read
            host.events.enable("handle_alloc", "handle_free")
            taken = measure()
            read += len(host.events.read())
            host.events.disable()
            return taken

        results = in_turn({"off": measure, "on": on}, rounds)
        lost = sum(host.events.lost.values())
    off_ns, on_ns = median(results["off"]), median(results["on"])
    detail = {
        "off_ns": off_ns,
        "on_ns": on_ns,
        "ns_an_event": (on_ns - off_ns) / 2,
        "share_percent": _share(results["off"], results["on"]),
        "read": read,
        "lost": lost,
    }
    return Row("a handle's life with events", "recorded only when named", [], detail)


# ---- probes ----


def worker() -> None:
    """Print the CPU time of a cycle in ns, for the module that this process has."""
    with sandhost.Host() as host:
        plugin = host.load(guest_bytes("bench"))
        for pages in (0, 16):
            _cycle(plugin, pages, 2000)
        print(*(median([_cycle(plugin, pages, 1000) for _ in range(15)]) for pages in (0, 16)))


def probes(quick: bool) -> Row | None:
    """The same life with probes compiled in, which nobody is attached to, and without."""
    if not unwatched.has_probes() or not shutil.which("cmake"):
        print("no probes in the installed module, or no cmake: not measured")
        return None
    with tempfile.TemporaryDirectory() as scratch:
        without = unwatched.package(Path(scratch), histograms=True)
        contenders = {
            "without": unwatched.in_process(without, "events.worker()"),
            "with": unwatched.in_process(unwatched.INSTALLED.parent, "events.worker()"),
        }
        results = in_turn(contenders, 3 if quick else 15)
    detail: dict[str, Any] = {}
    claims = []
    for number, pages in enumerate((0, 16)):
        without = [run[number] for run in results["without"]]
        with_them = [run[number] for run in results["with"]]
        share = _share(without, with_them)
        detail[f"{pages} pages"] = {
            "without_ns": median(without),
            "with_ns": median(with_them),
            "share_percent": share,
        }
        claims.append(Claim(f"probes, {pages} pages", share, "% of the cycle", _MOST_SHARE))
    return Row("probes compiled in, nobody attached", "processes in turn", claims, detail)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a rough look; nothing is written")
    quick = parser.parse_args().quick
    rows = [row for row in (cycles(quick), handles(quick), probes(quick)) if row is not None]
    for row in rows:
        print(row.what)
        for claim in row.claims:
            print(f"  {'ok    ' if claim.reached else 'MISSED'} {claim.what}: {claim}")
        print(f"  {json.dumps(row.detail)}")
    if not quick:
        out = {"machine": describe(), "rows": [row.as_json() for row in rows]}
        (RESULTS / "events.json").write_text(json.dumps(out, indent=1) + "\n")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
