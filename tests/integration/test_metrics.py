"""Metrics: each figure of a host is there, is what the host says, and has a bounded number of series."""

from __future__ import annotations

import gc
import weakref

import pytest
from helpers import WASM_PAGE, guest_file
from helpers.prometheus import promtool
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import sandhost
from sandhost.gc.collector import CollectorStats
from sandhost.govern.actions import CallBack
from sandhost.govern.ladder import Level
from sandhost.govern.pressure import PressureStats
from sandhost.govern.stats import MemStats, WorkerStats
from sandhost.heap_figures import HeapFigures
from sandhost.observe.buckets import BOUNDS_S, cumulative, sum_s
from sandhost.observe.figures import FIGURES
from sandhost.observe.metrics import HostCollector
from sandhost.observe.tables import TABLES
from sandhost.plugin import Plugin, PluginStats
from sandhost.tenants import TenantStats

HANDLES = b"""(module
  (import "db" "open" (func $open (result i64)))
  (func (export "open") (drop (call $open))))"""


@pytest.fixture
def registry(host) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(HostCollector(host, names=3))
    return registry


def text(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def series(registry: CollectorRegistry, label: str, name: str) -> dict[str, float]:
    """Return the values of one metric by the value of its label."""
    return {
        sample.labels[label]: sample.value
        for family in text_string_to_metric_families(text(registry))
        for sample in family.samples
        if sample.name == name
    }


def with_handles(host: sandhost.Host) -> Plugin:
    """Have a guest make a handle, and collect; return its plugin."""

    @host.function("db", "open")
    def open_one() -> sandhost.Handle[object]:
        return object()

    plugin = host.load(HANDLES)
    with plugin.spawn() as guest:
        guest.call("open")
    host.gc.collect()
    return plugin


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("stats", MemStats._fields),
        ("plugins", PluginStats._fields),
        ("workers", WorkerStats._fields),
        ("heap", HeapFigures._fields),
        ("collector", CollectorStats._fields),
        ("pressure", PressureStats._fields),
    ],
)
def test_every_field_has_a_figure(part, fields):
    assert set(fields) == set(TABLES[part])


def test_every_field_and_quota_of_a_tenant_has_a_figure():
    limits = {"memory_limit", "handles_limit", "guests_limit"}
    assert {*TenantStats._fields, *limits} == set(TABLES["tenants"])


def test_every_figure_is_there_once_there_is_what_it_is_about():
    limits = {"memory_limit": "1 GiB", "process_limit": "64 GiB", "handle_memory": "1 GiB"}
    with sandhost.Host(cache=False, max_guests=16, **limits) as host:
        registry = CollectorRegistry()
        registry.register(HostCollector(host))
        plugin = with_handles(host)
        host.pressure.actions.append(CallBack("note", Level.CALM, bool))
        host.pressure.turn()
        host.tenant("acme", "1 MiB", handles=10, guests=3)
        got = {family.name for family in registry.collect()}
        del plugin
        unknown = {"cgroup_bytes": "cgroup_bytes", "stall_us": "memory_stall_seconds"}
        absent = {name for field, name in unknown.items() if getattr(host.stats(), field) is None}
    assert got == {f"sandhost_{figure.name}" for figure in FIGURES if figure.name not in absent}


def test_values_are_what_the_host_says(host, registry):
    plugin = host.load(guest_file("no_max_memory"), name="grower")
    with plugin.spawn(tenant=host.tenant("acme", "16 MiB")) as guest:
        guest.call("grow", 3)
        assert registry.get_sample_value("sandhost_guests_live") == 1
        assert registry.get_sample_value("sandhost_committed_bytes") == 4 * WASM_PAGE
        acme = {"tenant": "acme"}
        assert registry.get_sample_value("sandhost_tenant_memory_bytes", acme) == 4 * WASM_PAGE
        assert registry.get_sample_value("sandhost_tenant_memory_limit_bytes", acme) == 16 << 20
        grower = {"plugin": "grower"}
        assert registry.get_sample_value("sandhost_plugin_guests_live", grower) == 1
    assert registry.get_sample_value("sandhost_calls_total") == 1
    assert registry.get_sample_value("sandhost_plugin_calls_total", grower) == 1
    assert registry.get_sample_value("sandhost_tenant_memory_peak_bytes", acme) == 4 * WASM_PAGE


def test_times_are_in_seconds(host, registry):
    with_handles(host)
    figures, stats = host.handles.figures(), host.gc.stats()
    value = registry.get_sample_value
    assert value("sandhost_handles_mark_seconds_total") == pytest.approx(figures.mark_ns / 1e9)
    assert value("sandhost_gc_collecting_seconds_total") == pytest.approx(stats.collecting_s)
    assert value("sandhost_gc_growth_ratio") == host.gc.percent / 100 == 1.0
    assert value("sandhost_gc_cycles_by_reason_total", {"reason": "explicit"}) == 1
    assert value("sandhost_handles_phase", {"phase": "idle"}) == 1


def test_a_scrape_makes_neither_a_handle_heap_nor_a_pressure_controller(host, registry):
    shown = text(registry)
    assert "sandhost_gc" not in shown
    assert "sandhost_pressure_level" not in shown
    assert host.handles_and_gc is None
    assert host.made_pressure is None


def test_latencies_are_histograms_of_all_operations(host, registry):
    plugin = host.load(guest_file("add"))
    for _ in range(50):
        plugin.call("add", 1, 2)
    for operation in ("spawn", "call", "close"):
        by_bound = {
            sample.labels["le"]: sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name == "sandhost_latency_seconds_bucket"
            and sample.labels["operation"] == operation
        }
        assert len(by_bound) == len(BOUNDS_S) + 1
        counts = list(by_bound.values())
        assert counts == sorted(counts)
        assert counts[-1] == host.latency(operation).total == 50


def test_buckets_count_exactly_what_is_below_their_bounds():
    for ns in (0, 1023, 1024, 1535, 1536, 786_431, 786_432, 4 << 20, (1 << 34) - 1, 1 << 34):
        highest = ns
        if ns >= 64:  # the bucket in which C counts it: 1/32 of a power of two
            width = 1 << (ns.bit_length() - 6)
            highest = ns // width * width + width - 1
        latency = sandhost.Latency(1, ns, ((highest, 1),))
        assert cumulative(latency) == [int(ns < bound * 1e9) for bound in BOUNDS_S]
        assert sum_s(latency) == pytest.approx(ns / 1e9, rel=1 / 64)


HOSTILE = (
    'quote"back\\slash',
    "line\nbreak} 1\nsandhost_guests_live 7",
    "\x1b[31mred",
    "\udc80 lone",
    "",
    "x" * 10_000,
    "other",
    "…",
)


def test_hostile_names_forge_no_series_and_stay_apart(host):
    registry = CollectorRegistry()
    registry.register(HostCollector(host))
    for name in HOSTILE:
        host.tenant(name)
    limits = series(registry, "tenant", "sandhost_tenant_memory_bytes")
    assert len(limits) == len(HOSTILE)
    assert all(len(label) < 120 and label.isprintable() for label in limits)
    assert "other" not in limits
    assert registry.get_sample_value("sandhost_guests_live") == 0
    promtool("check", "metrics", given=generate_latest(registry))


def test_names_that_begin_alike_are_not_counted_under_each_other(host):
    registry = CollectorRegistry()
    registry.register(HostCollector(host))
    host.tenant("a" * 200, 1 << 20)
    (victim,) = series(registry, "tenant", "sandhost_tenant_memory_bytes")
    for name in ("a" * 201, victim):
        host.tenant(name)
    assert len(series(registry, "tenant", "sandhost_tenant_memory_bytes")) == 3


def test_only_the_largest_tenants_have_series_and_nothing_is_lost(host, registry):
    plugin = host.load(guest_file("no_max_memory"))
    guests = [plugin.spawn(tenant=f"t{k}") for k in range(8)]
    for k, guest in enumerate(guests):
        guest.call("grow", k)
    pages = {
        name: value / WASM_PAGE
        for name, value in series(registry, "tenant", "sandhost_tenant_memory_bytes").items()
    }
    assert pages == {"t7": 8, "t6": 7, "t5": 6, "other": 1 + 2 + 3 + 4 + 5}
    for guest in guests:
        guest.close()


def test_counters_never_go_down_whoever_becomes_large_or_ends(host, registry):
    plugins = [host.load(guest_file("add"), name=f"p{k}") for k in range(6)]
    before: dict[str, float] = {}
    made = 0
    for turn in range(12):
        for k in range(6):
            for _ in range((k + turn) % 6):
                plugins[k].call("add", 1, 2)
                made += 1
        now = series(registry, "plugin", "sandhost_plugin_spawns_total")
        assert len(now) <= 4
        for name in now.keys() & before.keys():
            assert now[name] >= before[name]
        before = now
    assert sum(before.values()) <= made == host.stats().spawns
    gone = weakref.ref(plugins[0])
    del plugins[:3]
    gc.collect()
    assert gone() is None  # the collector held no plugin
    after = series(registry, "plugin", "sandhost_plugin_spawns_total")
    assert after.get("other", before["other"]) >= before["other"]


def test_plugins_of_one_name_share_a_series(host, registry):
    plugins = [host.load(guest_file("add"), name="twice") for _ in range(2)]
    for plugin in plugins:
        plugin.call("add", 1, 2)
    assert series(registry, "plugin", "sandhost_plugin_spawns_total") == {"twice": 2}


def test_promtool_finds_nothing_to_blame(host, registry):
    with_handles(host)
    host.tenant("acme", "1 MiB")
    assert promtool("check", "metrics", given=generate_latest(registry)) == ""


def test_a_host_that_is_gone_or_closed_breaks_no_scrape():
    registry = CollectorRegistry()
    with sandhost.Host(cache=False, max_guests=4) as host:
        registry.register(HostCollector(host))
    assert registry.get_sample_value("sandhost_guests_live") == 0
    del host
    gc.collect()
    assert generate_latest(registry) == b""


def test_a_second_host_in_one_registry_is_refused(host, registry):
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(HostCollector(host))


def test_no_two_figures_have_one_name():
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
