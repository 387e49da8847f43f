"""OpenTelemetry: the same figures as metrics; spans of spawn, call, close and collect."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import anyio
import pytest
from helpers import guest_file
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, StatusCode
from prometheus_client import CollectorRegistry

import sandhost
from sandhost.guest import Guest
from sandhost.observe.figures import FIGURES
from sandhost.observe.metrics import HostCollector
from sandhost.observe.otel import instrument
from sandhost.plugin import Plugin

SHOP = b"""(module
  (import "shop" "price" (func $price (param i32) (result i32)))
  (func (export "price") (param i32) (result i32) (call $price (local.get 0)))
  (func (export "price_slowly") (param i32) (result i32) (local $n i32)
    (loop (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1)))
                             (i32.const 40000000))))
    (call $price (local.get 0))))"""


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def take(self) -> list[ReadableSpan]:
        spans = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return spans

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


def parents(spans: list[ReadableSpan]) -> list[tuple[str, str | None]]:
    """Return the name of each span with that of its parent, in order of their beginning."""
    names = {span.context.span_id: span.name for span in spans}
    ordered = sorted(spans, key=lambda span: span.start_time)
    return [(s.name, names.get(s.parent.span_id) if s.parent else None) for s in ordered]


# ---- metrics ----


def metrics_of(reader: InMemoryMetricReader) -> dict[str, list]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: list(metric.data.data_points)
        for of_resource in data.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
    }


def test_every_figure_is_an_instrument_with_the_value_that_prometheus_sees(host):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    watching = instrument(host, tracer_provider=NoOpTracerProvider(), meter_provider=provider)
    registry = CollectorRegistry()
    registry.register(HostCollector(host))
    plugin = host.load(guest_file("add"), name="adder")
    host.tenant("acme", "1 MiB")
    for _ in range(5):
        plugin.call("add", 1, 2, tenant="acme")
    host.gc.collect()
    got, compared = metrics_of(reader), 0
    for family in registry.collect():
        for sample in family.samples:
            if family.type == "histogram":
                name = sample.name.replace("sandhost_", "sandhost.", 1)
                end = name.rpartition("_")[2]
                name = name.removesuffix(f"_{end}") + f".{end}"
            else:
                name = family.name.replace("sandhost_", "sandhost.", 1)
            values = [p.value for p in got[name] if dict(p.attributes) == sample.labels]
            if name not in ("sandhost.process_rss_bytes", "sandhost.gc_collecting_seconds"):
                assert values == [pytest.approx(sample.value)], name
                compared += 1
    assert compared > len(FIGURES)
    watching.uninstrument()
    assert metrics_of(reader) == {}
    provider.shutdown()


def test_each_collection_of_metrics_reads_anew(host):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    watching = instrument(host, tracer_provider=NoOpTracerProvider(), meter_provider=provider)
    plugin = host.load(guest_file("add"))
    for spawned in range(4):
        assert metrics_of(reader)["sandhost.spawns"][0].value == spawned
        plugin.call("add", 1, 2)
    watching.uninstrument()
    provider.shutdown()


def test_instruments_do_not_keep_the_host():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with sandhost.Host(cache=False, max_guests=4) as host:
        instrument(host, tracer_provider=NoOpTracerProvider(), meter_provider=provider)
        assert metrics_of(reader)
    gone = weakref.ref(host)
    del host
    gc.collect()
    assert gone() is None
    assert metrics_of(reader) == {}
    provider.shutdown()


# ---- traces ----


@pytest.fixture
def traced(host, spans) -> Iterator[sandhost.Host]:
    watching = instrument(host, tracer_provider=spans.provider, meter_provider=NoOpMeterProvider())
    yield host
    watching.uninstrument()


def test_spans_are_children_of_the_callers(traced, spans):
    plugin = traced.load(guest_file("add"), name="adder")
    with spans.tracer.start_as_current_span("request"):
        with plugin.spawn(tenant="acme") as guest:
            assert guest.call("add", 1, 2) == 3
            assert guest.func("add")(2, 3) == 5
    found = spans.take()
    assert parents(found) == [
        ("request", None),
        ("sandhost.spawn", "request"),
        ("sandhost.call", "request"),
        ("sandhost.call", "request"),
        ("sandhost.close", "request"),
    ]
    by_name = {span.name: dict(span.attributes) for span in found}
    assert by_name["sandhost.spawn"] == {"sandhost.plugin": "adder", "sandhost.tenant": "acme"}
    assert by_name["sandhost.call"] == {"sandhost.plugin": "adder", "code.function.name": "add"}
    assert by_name["sandhost.close"]["sandhost.reclaim.bytes"] == 0


def test_a_call_of_the_plugin_is_one_span_where_it_is_one_step(traced, spans):
    plugin = traced.load(guest_file("add"))
    assert plugin.call("add", 1, 2) == 3
    assert parents(spans.take()) == [("sandhost.plugin_call", None)]


def test_a_call_of_the_plugin_has_parts_where_it_takes_three_steps(traced, spans):
    @traced.function("shop", "price")
    def price(_guest: sandhost.Guest, item: int) -> int:
        with spans.tracer.start_as_current_span("database"):
            return item * 10

    assert traced.load(SHOP).call("price", 4) == 40
    assert parents(spans.take()) == [
        ("sandhost.plugin_call", None),
        ("sandhost.spawn", "sandhost.plugin_call"),
        ("sandhost.call", "sandhost.plugin_call"),
        ("database", "sandhost.call"),
        ("sandhost.close", "sandhost.plugin_call"),
    ]


@pytest.mark.anyio
async def test_the_parent_goes_over_await_and_worker_threads(traced, spans):
    @traced.function("shop", "price")
    async def price(item: int) -> int:
        with spans.tracer.start_as_current_span("database"):
            await anyio.sleep(0.001)
            return item * 10

    plugin = traced.load(SHOP)
    answers = {}

    async def request(item: int) -> None:
        with spans.tracer.start_as_current_span("request"):
            async with plugin.spawn_async() as guest:
                answers[item] = await guest.call_async("price_slowly", item)

    async with anyio.create_task_group() as tasks:
        for item in range(4):
            tasks.start_soon(request, item)
    assert answers == {item: item * 10 for item in range(4)}
    assert traced.workers().threads > 0  # it was computed there
    found = spans.take()
    assert sorted(parents(found)) == sorted(
        4
        * [
            ("request", None),
            ("sandhost.spawn", "request"),
            ("sandhost.call", "request"),
            ("database", "sandhost.call"),
            ("sandhost.close", "request"),
        ]
    )
    assert len({span.context.trace_id for span in found}) == 4


def test_errors_are_recorded_by_type_and_trap_code(traced, spans):
    with traced.load(guest_file("unreachable")).spawn() as guest:
        with pytest.raises(sandhost.GuestTrap):
            guest.call("trap")
    (span,) = spans.named("sandhost.call")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "sandhost.GuestTrap"
    assert span.attributes["sandhost.trap.code"] == "unreachable"
    (event,) = span.events
    assert event.attributes["exception.type"] == "sandhost.GuestTrap"
    assert "unreachable" in event.attributes["exception.message"]


def test_a_spawn_that_is_refused_is_an_error_too(traced, spans):
    plugin = traced.load(guest_file("bss"))
    with pytest.raises(sandhost.OutOfMemory):
        plugin.spawn(limits=sandhost.Limits(memory="1 MiB"))
    (span,) = spans.named("sandhost.spawn")
    assert span.attributes["error.type"] == "sandhost.OutOfMemory"


def test_neither_arguments_nor_words_of_the_applications_errors_are_in_a_span(traced, spans):
    secret = 1_847_110_815  # so long that no time of a span has it by chance

    @traced.function("shop", "price")
    def price(item: int) -> int:
        raise ValueError(f"password {item}")

    with traced.load(SHOP).spawn() as guest:
        with pytest.raises(ValueError, match=f"password {secret}"):
            guest.call("price", secret)
        with pytest.raises(OverflowError):
            guest.call("price", secret << 70)
    for span in spans.take():
        for word in (str(secret), str(secret << 70), "password"):
            assert word not in span.to_json()


def test_hostile_names_are_cleaned(traced, spans):
    plugin = traced.load(guest_file("add"), name="\x1b[31m" + "x" * 100_000)
    with plugin.spawn(tenant="\n" * 1000) as guest:
        with pytest.raises(sandhost.ConfigError):
            guest.call("\udc80" * 1000)
    for span in spans.take():
        for name in ("sandhost.plugin", "sandhost.tenant", "code.function.name"):
            value = span.attributes.get(name, "")
            assert len(value) < 600
            assert value.isprintable()


def test_a_collection_is_a_child_of_whoever_asked_for_it(traced, spans):
    traced.gc.collect()
    with spans.tracer.start_as_current_span("request"):
        traced.gc.collect()
    first, second = spans.named("sandhost.collect")
    (request,) = spans.named("request")
    assert first.parent is None
    assert second.parent.span_id == request.context.span_id
    assert request.start_time <= second.start_time <= second.end_time <= request.end_time
    assert second.attributes["sandhost.gc.reason"] == "explicit"


def test_a_task_that_is_cancelled_ends_its_spans(traced, spans):
    @traced.function("shop", "price")
    async def price(item: int) -> int:
        await asyncio.sleep(60)
        return item

    async def main() -> None:
        async with traced.load(SHOP).spawn_async() as guest:
            with anyio.move_on_after(0.01):
                await guest.call_async("price", 1)

    asyncio.run(main())
    (call,) = spans.named("sandhost.call")
    assert call.attributes["error.type"] == "asyncio.exceptions.CancelledError"


def test_nothing_of_it_is_left_when_it_ends(host, spans):
    before = host.load(guest_file("add"))
    watching = instrument(host, tracer_provider=spans.provider, meter_provider=NoOpMeterProvider())
    with pytest.raises(sandhost.ConfigError, match="already"):
        instrument(host, tracer_provider=spans.provider)
    guest = before.spawn()
    add = guest.func("add")
    watching.uninstrument()
    watching.uninstrument()
    spans.take()
    assert add(1, 2) == 3
    guest.close()
    host.gc.collect()
    with before.spawn() as later:
        assert type(later) is Guest
    assert spans.take() == []
    assert before.spawn_from.__func__ is Plugin.spawn_from
    instrument(host, tracer_provider=spans.provider).uninstrument()


def test_traces_do_not_keep_plugins_or_the_host(spans):
    with sandhost.Host(cache=False, max_guests=4) as host:
        instrument(host, tracer_provider=spans.provider, meter_provider=NoOpMeterProvider())
        plugin = host.load(guest_file("add"))
        plugin.call("add", 1, 2)
        gone = weakref.ref(plugin)
        del plugin
        assert gone() is None  # no cycle either
    gone_host = weakref.ref(host)
    del host
    assert gone_host() is None


def test_without_an_sdk_everything_still_runs(tmp_path):
    code = """
import sandhost, sys
from sandhost.observe.otel import instrument
assert not any(name.startswith("opentelemetry.sdk") for name in sys.modules)
with sandhost.Host(cache=False, max_guests=4) as host:
    watching = instrument(host)
    plugin = host.load(b'(module (func (export "f")))')
    plugin.call("f")
    with plugin.spawn() as guest:
        guest.call("f")
    host.gc.collect()
    watching.uninstrument()
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,  # away from the sources
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
