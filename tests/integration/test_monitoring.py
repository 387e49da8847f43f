"""What deploy/ has for operators works: with a real Prometheus, promtool, and Grafana's own models."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, guest_file, wait_until
from helpers.prometheus import Server, prometheus, promtool
from prometheus_client import CollectorRegistry, start_http_server

import sandhost
from sandhost.govern.actions import CallBack
from sandhost.govern.ladder import Level
from sandhost.observe.figures import FIGURES
from sandhost.observe.metrics import HostCollector

GRAFANA, PROMETHEUS = ROOT / "deploy/grafana", ROOT / "deploy/prometheus"
BOARD = json.loads((GRAFANA / "sandhost.json").read_text())


def queries() -> list[str]:
    """Those of any host; test_serve_monitoring.py has the service's."""
    every = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
    return [expression for expression in every if "sandhost_serve_" not in expression]


def metrics_in(text: str) -> set[str]:
    """Return the families that a text names."""
    names = set(re.findall(r"\bsandhost_\w+", text))
    return {re.sub(r"(_latency_seconds)_\w+|_total$", r"\1", name) for name in names}


FAMILIES = {f"sandhost_{figure.name}" for figure in FIGURES}


@pytest.mark.parametrize(
    "file", [GRAFANA / "sandhost.json", PROMETHEUS / "alerts.yml", PROMETHEUS / "alerts_test.yml"]
)
def test_every_metric_that_is_named_exists(file: Path):
    named = {n for n in metrics_in(file.read_text()) if not n.startswith("sandhost_serve_")}
    assert len(named) > 5
    assert named <= FAMILIES


def test_promtool_finds_the_rules_right():
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml", cwd=PROMETHEUS)
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml", cwd=PROMETHEUS)


def test_every_alert_comes_when_it_should_and_not_else():
    printed = promtool("test", "rules", "alerts_test.yml", cwd=PROMETHEUS)
    assert "SUCCESS" in printed
    rules = re.findall(r"alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text())
    tested = re.findall(r"alertname: (\w+)", (PROMETHEUS / "alerts_test.yml").read_text())
    assert set(rules) == set(tested)


def test_the_dashboard_is_what_its_script_builds():
    pytest.importorskip("grafana_foundation_sdk", reason="it needs Python 3.11")
    spec = importlib.util.spec_from_file_location("dashboard", GRAFANA / "dashboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert json.loads(module.build()) == BOARD, "run python deploy/grafana/dashboard.py"


def test_grafanas_own_model_reads_the_dashboard_and_writes_it_alike():
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder")
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    board = models.Dashboard.from_json(BOARD)
    assert json.loads(json.dumps(board, cls=encoder.JSONEncoder)) == BOARD


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


# ---- a real Prometheus ----


HANDLES = b"""(module
  (import "db" "open" (func $open (result i64)))
  (func (export "open") (drop (call $open))))"""


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> Iterator[tuple[Server, list[sandhost.Guest]]]:
    """A Prometheus with deploy's configuration, that scrapes a host with three guests, fast."""
    config = (PROMETHEUS / "prometheus.yml").read_text()
    config = config.replace(": 5s", ": 200ms").replace("alerts.yml", str(PROMETHEUS / "alerts.yml"))
    limits: Any = {"memory_limit": "1 GiB", "process_limit": "64 GiB", "max_guests": 16}
    with sandhost.Host(cache=False, **limits) as host:

        @host.function("db", "open")
        def open_one() -> sandhost.Handle[object]:
            return object()

        host.pressure.actions.append(CallBack("note", Level.CALM, bool))
        plugin = host.load(HANDLES, name="opener")
        plugin.call("open")
        host.gc.collect()
        add = host.load(guest_file("no_max_memory"), name="grower")
        acme = host.tenant("acme", "16 MiB")
        guests = [add.spawn(tenant=acme) for _ in range(3)]
        registry = CollectorRegistry()
        registry.register(HostCollector(host))
        http, thread = start_http_server(0, "127.0.0.1", registry)
        config = config.replace("localhost:9464", f"127.0.0.1:{http.server_port}")
        try:
            with prometheus(config, tmp_path_factory.mktemp("prometheus")) as server:
                wait_until(lambda: server.query('count_over_time(up{job="sandhost"}[1m]) > 2'))
                yield server, guests
        finally:
            http.shutdown()
            http.server_close()
            thread.join()
            for guest in guests:
                guest.close()


def test_prometheus_answers_queries_about_a_host(scraped):
    server, guests = scraped
    wait_until(lambda: server.query("sandhost_guests_live") == {(): 3})
    assert server.query('sandhost_plugin_guests_live{plugin="grower"}') == {("grower",): 3}
    assert server.query("sandhost_tenant_memory_bytes / 65536") == {("acme",): 3}
    assert server.query('sandhost_latency_seconds_count{operation="spawn"}') == {("spawn",): 4}
    guests.pop().close()
    wait_until(lambda: server.query("sandhost_guests_live") == {(): 2})
    wait_until(
        lambda: server.query("sandhost_plugin_calls_total") == {("opener",): 1, ("grower",): 0}
    )


def test_prometheus_knows_kinds_and_help(scraped):
    server, _ = scraped
    told = server.get("/api/v1/metadata")
    for figure in FIGURES:
        name = f"sandhost_{figure.name}" + ("_total" if figure.kind == "counter" else "")
        if name in told:
            assert told[name] == [{"type": figure.kind, "help": figure.help, "unit": ""}]
    assert len(told.keys() & {f"sandhost_{figure.name}" for figure in FIGURES}) > 40


@pytest.mark.parametrize("expression", queries())
def test_every_query_of_the_dashboard_has_an_answer(scraped, expression):
    server, _ = scraped
    expression = expression.replace("$__rate_interval", "1m")
    for variable in ("$job", "$instance"):
        expression = expression.replace(variable, ".*")
    wait_until(lambda: server.query(expression))  # a scrape may have been late just now


def test_prometheus_evaluates_the_alerts(scraped):
    server, _ = scraped

    def rules() -> list[dict[str, Any]]:
        return [rule for group in server.get("/api/v1/rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()))
    assert len(rules()) > 5  # the service's as well, whose figures are not here
    assert {rule["name"] for rule in rules() if rule["state"] != "inactive"} == set()
