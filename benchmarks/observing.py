"""What watching costs: cycles of guests with nothing, with metrics, with traces, in turn.

    python benchmarks/observing.py            # some eight minutes, into benchmarks/results/observing.json
    python benchmarks/observing.py --quick

Each block is a host with a hundred guests, watched for 1.2 seconds. What is compared is the process's CPU
time for each cycle of the block, in which is all that watching takes, also in other threads, with a block
of nothing beside it; the median of the ratios counts. "nothing, again" is how far two equal blocks are
apart. Metrics are scraped and exported twenty times a second, and a twentieth of what that costs is what
once a second costs. The same by the clock stands beside it; on a busy machine it says more about the
machine. "Everything" compares processes that take turns (turns.py): the installed module, scraped every
second and with events logged, with one that is built here without probes, histograms and their looks at
the clock (it needs cmake). What the thread with the guests takes more is a ratio; what other threads take,
for a scrape and ten looks of the log a second, is measured while nothing else happens, and added. Of who
reads all events the thread with the guests is shown, and nothing claimed: an object for each of some
300,000 events a second is the reader's wish. Exits with 1 while a figure is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, perf_counter_ns, process_time_ns, sleep
from typing import Any

import turns
import unwatched
from common import RESULTS, Claim, Row, in_turn, summary_us
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from unwatched import INSTALLED

import sandhost
from sandhost.bench.machine import describe
from sandhost.bench.workload import guest_bytes
from sandhost.events import KINDS
from sandhost.observe.metrics import HostCollector
from sandhost.observe.otel import instrument

Watch = Callable[[sandhost.Host], contextlib.AbstractContextManager[None]]

_TIMES = 20
"""Scrapes and exports a second: what one a second costs would drown in the noise."""

_SCRAPER = """
import select, sys, urllib.request
while True:
    url = sys.stdin.readline().strip()
    if not url: break
    while not select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:
        urllib.request.urlopen(url).read()
    sys.stdin.readline(); print("done", flush=True)
"""


class Scraper:
    """A process that scrapes so many times a second, while it is asked to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRAPER, str(1 / _TIMES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    @contextlib.contextmanager
    def prometheus(self, host: sandhost.Host) -> Iterator[None]:
        registry = CollectorRegistry()
        registry.register(HostCollector(host))
        http, thread = start_http_server(0, "127.0.0.1", registry)
        self.tell(f"http://127.0.0.1:{http.server_port}/metrics")
        yield
        self.tell("stop")
        assert self._process.stdout is not None
        self._process.stdout.readline()
        http.shutdown()
        http.server_close()
        thread.join()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def nothing(_host: sandhost.Host) -> Iterator[None]:
    yield


class Dropped(MetricExporter):
    """Sends nothing anywhere: what an exporter takes is its own affair."""

    def export(self, _data: MetricsData, **_: Any) -> MetricExportResult:
        return MetricExportResult.SUCCESS

    def force_flush(self, **_: Any) -> bool:
        return True

    def shutdown(self, **_: Any) -> None:
        pass


@contextlib.contextmanager
def otel_metrics(host: sandhost.Host) -> Iterator[None]:
    reader = PeriodicExportingMetricReader(Dropped(), export_interval_millis=1000 / _TIMES)
    provider = MeterProvider([reader], shutdown_on_exit=False)
    watching = instrument(host, tracer_provider=NoOpTracerProvider(), meter_provider=provider)
    yield
    watching.uninstrument()
    provider.shutdown()


@contextlib.contextmanager
def traces_without_sdk(host: sandhost.Host) -> Iterator[None]:
    provider = trace.get_tracer_provider()  # nobody has set one: its spans go nowhere
    watching = instrument(host, tracer_provider=provider, meter_provider=NoOpMeterProvider())
    yield
    watching.uninstrument()


@contextlib.contextmanager
def traces_in_memory(host: sandhost.Host) -> Iterator[None]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    watching = instrument(host, tracer_provider=provider, meter_provider=NoOpMeterProvider())
    yield
    watching.uninstrument()
    exporter.clear()


def cycle(plugin: sandhost.Plugin) -> None:
    with plugin.spawn(tenant="t1") as guest:
        guest.call("add", 2, 3)


def plugin_call(plugin: sandhost.Plugin) -> None:
    plugin.call("add", 2, 3, tenant="t1")


def block(
    watch: Watch, work: Callable[[sandhost.Plugin], None], seconds: float
) -> tuple[float, float]:
    """Return the mean µs of one piece of work, watched: of the process's CPU time, and by the clock."""
    with sandhost.Host(max_guests=256) as host, contextlib.ExitStack() as others:
        plugin = host.load(guest_bytes("bench"))
        for k in range(100):
            others.enter_context(plugin.spawn(tenant=f"t{k % 20}"))
        for _ in range(200):
            work(plugin)
        with watch(host):
            done, began, cpu_began = 0, perf_counter_ns(), process_time_ns()
            until = began + round(seconds * 1e9)
            while perf_counter_ns() < until:
                for _ in range(100):
                    work(plugin)
                done += 100
            taken, cpu = perf_counter_ns() - began, process_time_ns() - cpu_began
    return cpu / done / 1000, taken / done / 1000


_MOST = 1.03
_PROMETHEUS = "Prometheus, scraped"
_OTEL = "OpenTelemetry metrics, exported"
_METRICS = (_PROMETHEUS, _OTEL)


def ways(scraper: Scraper) -> dict[str, Watch]:
    return {
        "nothing, again": nothing,
        _PROMETHEUS: scraper.prometheus,
        _OTEL: otel_metrics,
        "OpenTelemetry traces, no SDK": traces_without_sdk,
        "OpenTelemetry traces, SDK, kept in memory": traces_in_memory,
    }


def watched(name: str, work: Callable[[sandhost.Plugin], None], quick: bool) -> Row:
    """Compare all ways to watch, for one kind of work, each with a block of nothing beside it."""
    scraper = Scraper()
    seconds = 1.2
    detail: dict[str, Any] = {"seconds a block": seconds}
    claims = []
    for way, watch in ways(scraper).items():
        rounds = (3 if quick else 9) if "traces" not in way else 3
        pair = {
            "alone": lambda: block(nothing, work, seconds),
            "watched": lambda watch=watch: block(watch, work, seconds),
        }
        taken = in_turn(pair, rounds)
        found: dict[str, Any] = {"rounds": rounds}
        for kind, title in enumerate(("CPU time", "clock")):
            us = {which: [one[kind] for one in each] for which, each in taken.items()}
            ratios = [x / y for x, y in zip(us["watched"], us["alone"])]
            found[title] = {
                **{f"{which}, us": statistics.median(each) for which, each in us.items()},
                "ratio": statistics.median(ratios),
                "ratios": sorted(round(ratio, 3) for ratio in ratios),
            }
        detail[way] = found
        if way in _METRICS:
            once = 1 + (found["CPU time"]["ratio"] - 1) / _TIMES
            claims.append(Claim(f"{way} every second", once, "× nothing", _MOST))
    scraper.close()
    return Row(name, "means of blocks side by side; median of the ratios", claims, detail)


# ---- everything at once ----


@contextlib.contextmanager
def events_read(host: sandhost.Host) -> Iterator[None]:
    """All ordinary kinds, read by a thread."""
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.02):
            host.events.read()

    host.events.enable()
    thread = threading.Thread(target=read)
    thread.start()
    yield
    over.set()
    thread.join()
    host.events.disable()


_TROUBLE = ("trap", "refused", "deadline", "cancel", "quarantine")
_ORDINARY = set(KINDS) - {"handle_alloc", "handle_free"}
LEVELS = {
    "trouble logged": dict.fromkeys(_TROUBLE, "warning"),
    "all logged": {kind: "warning" if kind in _TROUBLE else "debug" for kind in _ORDINARY},
}
"""What operators have logged. The logger's own level is "warning", as by default."""


def everything_worker(how: str) -> None:
    """Take turns at cycles: watched by "nobody", scraped and one of LEVELS, or scraped and "all read"."""
    with sandhost.Host(max_guests=256) as host, contextlib.ExitStack() as others:
        plugin = host.load(guest_bytes("bench"))
        for k in range(100):
            others.enter_context(plugin.spawn(tenant=f"t{k % 20}"))
        scraped_at = ""
        if how != "nobody":
            registry = CollectorRegistry()
            registry.register(HostCollector(host))
            http, _ = start_http_server(0, "127.0.0.1", registry)
            others.callback(http.shutdown)
            scraped_at = f"http://127.0.0.1:{http.server_port}/metrics"
        if how in LEVELS:
            host.events.log(LEVELS[how])
        elif how != "nobody":
            others.enter_context(events_read(host))

        def work(pages: int, count: int) -> None:
            for _ in range(count):
                with plugin.spawn(tenant="t1") as guest:
                    guest.call("dirty", pages)

        turns.serve(work, scraped_at)


def everything(quick: bool) -> Row | None:
    """Metrics, events, histograms and probes, beside a module that has none of them."""
    if not shutil.which("cmake"):
        print("no cmake: everything at once is not measured")
        return None
    lives, rounds = (6, 40) if quick else (24, 60)
    with tempfile.TemporaryDirectory() as scratch:
        bare = unwatched.package(Path(scratch), histograms=False)
        watched = ("nobody", *LEVELS, "all read")
        contenders = {
            name: turns.Contender(bare, "observing.everything_worker('nobody')")
            for name in ("bare", "bare, again")
        } | {
            how: turns.Contender(INSTALLED.parent, f"observing.everything_worker({how!r})")
            for how in watched
        }
        seen = [turns.live(contenders, (0, 16), rounds) for _ in range(lives)]
    claims = []
    detail: dict[str, Any] = {"lives": lives, "rounds of a life": rounds}
    for pages in (0, 16):
        ratios = {how: turns.ratios(seen, pages, how, ("bare", "bare, again")) for how in watched}
        aside = {
            how: [life.resting[how] - life.resting["bare"] for life in seen] for how in watched
        }
        whole = {
            how: turns.Mean.of([x + y for x, y in zip(ratios[how], aside[how])]) for how in LEVELS
        }
        detail[f"{pages} pages"] = {
            "thread, us": {
                name: statistics.median([ns for life in seen for ns in life.ns[pages][name]]) / 1000
                for name in contenders
            },
            "bare, again, to bare": turns.Mean.of(
                turns.ratios(seen, pages, "bare, again", ("bare",))
            ),
            "thread, to bare": {how: turns.Mean.of(each) for how, each in ratios.items()},
            "other threads, share of a core": {
                how: turns.Mean.of(each) for how, each in aside.items()
            },
            "together": whole,
        }
        claims += [
            Claim(f"metrics, histograms, probes, {how}: {pages} pages", mean.value, "× bare", _MOST)
            for how, mean in whole.items()
        ]
    return Row("Everything at once", "CPU time; processes that take turns", claims, detail)


def by_itself(quick: bool) -> Row:
    """What watching takes while nothing else happens: exact, whatever the machine does meanwhile."""
    scraper = Scraper()
    seconds = 3.0 if quick else 10.0
    shares = {}
    for way in _METRICS:
        with sandhost.Host(max_guests=256) as host, contextlib.ExitStack() as guests:
            plugin = host.load(guest_bytes("bench"))
            for k in range(100):
                guests.enter_context(plugin.spawn(tenant=f"t{k % 20}"))
            with ways(scraper)[way](host):
                sleep(1.5)  # the first time is dearer
                began = process_time_ns()
                sleep(seconds)
                shares[way] = (process_time_ns() - began) / 1e7 / seconds / _TIMES
    scraper.close()
    claims = [
        Claim(f"{way} every second", share, "% of a core", 3) for way, share in shares.items()
    ]
    return Row("Watching by itself", "CPU time of an idle process", claims, {"percent": shares})


def scrape(quick: bool) -> Row:
    """How long one scrape takes, of a host with 1,000 guests of 20 tenants."""
    with sandhost.Host(max_guests=1100) as host, contextlib.ExitStack() as guests:
        plugin = host.load(guest_bytes("bench"))
        for k in range(1000):
            guests.enter_context(plugin.spawn(tenant=f"t{k % 20}"))
        host.gc.collect()
        collector, registry = HostCollector(host), CollectorRegistry()
        registry.register(collector)
        pieces: dict[str, Callable[[], Any]] = {
            "host.stats()": host.stats,
            "reading all figures": lambda: list(collector.collect()),
            "reading and writing them as text": lambda: generate_latest(registry),
        }
        taken: dict[str, list[int]] = {name: [] for name in pieces}
        for _ in range(50 if quick else 500):
            for name, piece in pieces.items():
                began = perf_counter_ns()
                piece()
                taken[name].append(perf_counter_ns() - began)
        text = generate_latest(registry)
    detail = {name: summary_us(ns) for name, ns in taken.items()}
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    whole = detail["reading and writing them as text"]["p50"] / 1000
    return Row(
        "One scrape, 1,000 guests, 20 tenants",
        "µs, in one thread",
        [Claim("a scrape", whole, "ms", 10)],
        {"us": detail, "bytes": len(text), "series": series},
    )


ROWS: dict[str, Callable[[bool], Row | None]] = {
    "scrape": scrape,
    "everything": everything,
    "by_itself": by_itself,
    "cycle": lambda quick: watched("Spawn, call, close", cycle, quick),
    "plugin_call": lambda quick: watched("plugin.call", plugin_call, quick),
}


def main() -> int:
    """Measure, print, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute, coarse")
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("-o", "--out", type=Path, default=RESULTS / "observing.json")
    given = parser.parse_args()
    began = perf_counter()
    found = [ROWS[name](given.quick) for name in given.only]
    rows = [row for row in found if row is not None]
    for row in rows:
        print(f"{row.what}: {'reached' if row.reached else 'MISSED'}")
        for claim in row.claims:
            print(f"  {claim.what}: {claim}")
        print(json.dumps(row.detail, indent=2))
    result = {
        "machine": describe(),
        "seconds": round(perf_counter() - began),
        "rows": [row.as_json() for row in rows],
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
