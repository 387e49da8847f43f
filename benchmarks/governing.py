"""Ten hostile tenants for ten minutes in a process that may have 4 GiB, beside two that do nothing wrong.

    python benchmarks/governing.py                 # eleven minutes, into benchmarks/results/
    python benchmarks/governing.py --seconds 30    # a rough look

Four tenants grow guests until they are refused and keep them, three keep every object that they are handed,
three spawn and close as fast as they may. All twelve have the same quotas of CPU time and starts, none of
memory: what keeps the process below its limit is the host's own limits, shares and pressure. Writes
governing.json and, where matplotlib is installed, governing.png. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, Claim, Row, percentile

import sandhost
from sandhost.bench.machine import describe
from sandhost.bench.workload import guest_bytes
from sandhost.units import format_bytes

_BOMBS, _LEAKERS, _CHURNERS, _GOOD = 4, 3, 3, 2
_QUOTAS: dict[str, Any] = {"cpus": 0.1, "spawns_per_s": 100}
"""Of each tenant: without them, ten of them would have both cores."""
_EVERY_S = 0.02
"""Between two requests of a good tenant, by a clock that does not wait for the last one."""
_HELD = sandhost.Limits(memory="128 MiB")

_BOMB = b"""(module
  (memory (export "memory") 1)
  (func (export "grow") (result i32) (local $at i32)
    (local.set $at (memory.grow (i32.const 16)))
    (if (result i32) (i32.eq (local.get $at) (i32.const -1))
      (then (i32.const 0))
      (else
        (memory.fill (i32.shl (local.get $at) (i32.const 16)) (i32.const 1) (i32.const 0x100000))
        (i32.const 1)))))"""
_LEAKER = b"""(module
  (import "env" "open" (func $open (param i32) (result i64)))
  (import "sandhost" "release" (func $release (param i64) (result i32)))
  (memory (export "memory") 1)
  (func (export "open") (drop (call $open (i32.const 65536)))))"""


class Blob:
    """What leakers are handed."""

    def __init__(self, size: int) -> None:
        self.bytes = b"x" * size


class Load:
    """Threads of tenants, until they are told to stop; what they met."""

    def __init__(self, host: sandhost.Host) -> None:
        self.met: Counter[str] = Counter()
        self.stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._host = host

    def begin(self, work: Callable[[str], None], tenant: str) -> None:
        """Have one tenant at work."""
        self._host.tenant(tenant, **_QUOTAS)
        thread = threading.Thread(target=self._run, args=(work, tenant), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, work: Callable[[str], None], tenant: str) -> None:
        while not self.stop.is_set():
            try:
                work(tenant)
            except (sandhost.Overloaded, sandhost.QuotaExceeded) as error:
                self.met[type(error).__name__] += 1
                self.stop.wait(error.retry_after_s or 0.05)
            except sandhost.SandhostError as error:
                self.met[type(error).__name__] += 1
                self.stop.wait(0.05)

    def end(self) -> None:
        """Stop, and wait for all."""
        self.stop.set()
        for thread in self._threads:
            thread.join()


class Good:
    """A tenant that spawns, computes a fifth of a millisecond and closes, fifty times a second."""

    def __init__(self, plugin: sandhost.Plugin, tenant: str) -> None:
        self._plugin, self._tenant = plugin, tenant
        self.requests: list[tuple[float, int]] = []
        """(when it was due, nanoseconds from then to its end)."""
        self.failures: Counter[str] = Counter()
        self.guest = plugin.spawn(tenant=tenant)
        """One that lives all the time: it must never be ended."""

    def run(self, seconds: float) -> None:
        """Send requests when they are due."""
        begun = time.perf_counter()
        for number in range(int(seconds / _EVERY_S)):
            due = begun + number * _EVERY_S
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                with self._plugin.spawn(tenant=self._tenant) as guest:
                    guest.call("scan", 0)
                self.guest.call("scan", 0)
            except sandhost.SandhostError as error:
                self.failures[type(error).__name__] += 1
            self.requests.append((due - begun, round((time.perf_counter() - due) * 1e9)))

    def take(self) -> list[tuple[float, int]]:
        """Return the requests so far, and forget them."""
        requests, self.requests = self.requests, []
        return requests


def _peak_resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmHWM")


def _run_all(goods: list[Good], seconds: float) -> None:
    threads = [threading.Thread(target=good.run, args=(seconds,)) for good in goods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _p99_us(requests: list[tuple[float, int]]) -> float:
    return percentile(sorted(ns for _, ns in requests), 99) / 1000


def measure(limit: int, seconds: float) -> Row:
    """Run the good ones alone, then all, then watch the pressure fall."""
    with sandhost.Host(process_limit=limit, max_guests=4096, handle_memory="1 GiB") as host:
        host.handles.kind(Blob, size=lambda blob: len(blob.bytes))

        @host.function("env", "open")
        def open_blob(size: int) -> sandhost.Handle[Blob]:
            return Blob(size)

        bomb, leaker = host.load(_BOMB, name="bomb"), host.load(_LEAKER, name="leaker")
        churner = host.load(guest_bytes("bench"), name="churner")
        scanner = host.load(guest_bytes("secrets"), name="scanner")
        for number in range(_GOOD):
            host.tenant(f"good-{number}", **_QUOTAS)
        goods = [Good(scanner, f"good-{number}") for number in range(_GOOD)]
        _run_all(goods, min(30.0, max(5.0, seconds / 10)))
        alone = [request for good in goods for request in good.take()]

        load = Load(host)
        held: dict[str, list[sandhost.Guest]] = {}
        full: dict[str, bool] = {}

        def explode(tenant: str) -> None:
            mine = held.setdefault(tenant, [])
            if not mine or full.pop(tenant, False):
                mine.append(bomb.spawn(tenant=tenant, limits=_HELD))
            try:
                while not load.stop.is_set() and mine[-1].call("grow"):
                    pass
                full[tenant] = True  # it has what it may have: another one
            except (sandhost.GuestClosed, sandhost.GuestEvicted):
                mine.pop().close()
                raise

        def leak(tenant: str) -> None:
            mine = held.setdefault(tenant, [])
            if not mine:
                mine.append(leaker.spawn(tenant=tenant))
            try:
                while not load.stop.is_set():
                    mine[-1].call("open")
            except (sandhost.GuestClosed, sandhost.GuestEvicted):
                mine.pop().close()
                raise

        def churn(tenant: str) -> None:
            with churner.spawn(tenant=tenant) as guest:
                guest.call("dirty", 256)

        for kind, count, work in (
            ("bomb", _BOMBS, explode),
            ("leaker", _LEAKERS, leak),
            ("churner", _CHURNERS, churn),
        ):
            for number in range(count):
                load.begin(work, f"{kind}-{number}")
        course: list[tuple[float, int, int]] = []
        watching = threading.Thread(target=_watch, args=(host, course, load.stop), daemon=True)
        watching.start()
        _run_all(goods, seconds)
        load.end()
        for guest in [guest for mine in held.values() for guest in mine]:
            guest.close()
        ended_s = time.perf_counter()
        while host.pressure.level and time.perf_counter() - ended_s < 10:
            time.sleep(0.005)
        fell_s = time.perf_counter() - ended_s
        watching.join()

        peak, beside = _peak_resident_bytes(), [r for good in goods for r in good.take()]
        victims = Counter(one.tenant for one in host.pressure.ended)
        innocents = sum(good.guest.closed or good.guest.id == 0 for good in goods)
        innocents += sum(
            count for name, count in victims.items() if (name or "").startswith("good")
        )
        stats = host.pressure.stats()
        for good in goods:
            innocents += bool(good.failures["GuestClosed"] or good.failures["GuestEvicted"])
            good.guest.close()
        failed = sum((good.failures for good in goods), Counter())
        return Row(
            "ten hostile tenants",
            f"{seconds:g} s in a process of {format_bytes(limit)}",
            [
                Claim("peak resident, of the limit", peak / limit, "×", 1.03),
                Claim("good tenants' guests ended", innocents, "guests", 0),
                Claim("good tenants' requests failed", sum(failed.values()), "requests", 0),
                Claim("their p99, to alone", _p99_us(beside) / _p99_us(alone), "×", 2),
                Claim("pressure gone after the load", fell_s, "s", 1),
            ],
            {
                "peak_resident_bytes": peak,
                "limit_bytes": limit,
                "p99_us": {"alone": _p99_us(alone), "beside": _p99_us(beside)},
                "p50_us": {
                    "alone": percentile(sorted(ns for _, ns in alone), 50) / 1000,
                    "beside": percentile(sorted(ns for _, ns in beside), 50) / 1000,
                },
                "requests": {"alone": len(alone), "beside": len(beside)},
                "failures": dict(failed),
                "hostile_met": dict(load.met),
                "ended": {str(name): count for name, count in victims.items()},
                "guests_ended": stats.guests_ended,
                "why": [str(one) for one in list(host.pressure.ended)[-3:]],
                "seconds_at": stats.seconds_at,
                "actions": stats.actions,
                "scavenger_s": stats.scavenger_s,
                "course": course,
                "by_second_us": _by_second(beside),
            },
        )


def _by_second(requests: list[tuple[float, int]]) -> list[float]:
    seconds: dict[int, list[int]] = {}
    for due, ns in requests:
        seconds.setdefault(int(due), []).append(ns)
    return [percentile(sorted(seconds[s]), 99) / 1000 for s in sorted(seconds)]


def _watch(
    host: sandhost.Host, course: list[tuple[float, int, int]], stop: threading.Event
) -> None:
    begun = time.perf_counter()
    while not stop.wait(0.1):
        resident = host.stats().process_rss_bytes or 0
        course.append((round(time.perf_counter() - begun, 2), resident, int(host.pressure.level)))


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the load lasts")
    parser.add_argument("--limit", type=sandhost.units.parse_bytes, default=4 * 2**30)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    row = measure(options.limit, options.seconds)
    for claim in row.claims:
        print(f"{claim.what:32} {claim}  {'yes' if claim.reached else 'NO'}")
    for key in (
        "p50_us",
        "p99_us",
        "failures",
        "hostile_met",
        "ended",
        "seconds_at",
        "actions",
        "why",
    ):
        print(f"  {key}: {row.detail[key]}")
    result = {"schema": "sandhost-governing/1", "machine": describe(), "rows": [row.as_json()]}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "governing.json").write_text(json.dumps(result) + "\n")
    try:
        from governing_picture import draw
    except ImportError:
        print("no picture: matplotlib is not installed")
    else:
        draw(result, options.out / "governing.png")
    return 0 if row.reached else 1


if __name__ == "__main__":
    raise SystemExit(main())
