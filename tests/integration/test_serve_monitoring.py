"""deploy/prometheus/service.yml and Grafana's provisioning: a real Prometheus scrapes a real service with them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, guest_file, wait_until
from helpers.prometheus import Server, prometheus, promtool
from helpers.serving import ADMIN, Client, child
from yaml import safe_load

DEPLOY = ROOT / "deploy"
BOARD = json.loads((DEPLOY / "grafana/sandhost.json").read_text())
CONFIG = (DEPLOY / "prometheus/service.yml").read_text()
OBSERVE = "observe-me-0123456789"


def yaml(file: Path) -> Any:
    return safe_load(file.read_text())


def test_promtool_finds_the_configuration_right():
    assert "SUCCESS" in promtool(
        "check", "config", "--syntax-only", "service.yml", cwd=DEPLOY / "prometheus"
    )


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("service")
    token = folder / "observe_token"
    token.write_text(OBSERVE)

    async def work() -> None:
        async with one.http() as http:
            admin = Client(http, ADMIN)
            await admin.ask("PUT", "/v1/admin/tenants/acme", 201, json={})
            path = "/v1/admin/tenants/acme/tokens"
            made = await admin.ask("POST", path, 201, json={"scopes": ["deploy", "invoke"]})
            acme = Client(http, made["token"])
            await acme.deploy("add", guest_file("add"))
            assert await acme.call("add", "add", 2, 3) == [5]
            await acme.ask("POST", "/v1/plugins/add/sessions", 201)

    with child(folder / "data", "--observe-token", OBSERVE) as one:
        asyncio.run(work())
        config = CONFIG.replace(": 5s", ": 200ms")
        for shipped, here in (
            ("alerts.yml", str(DEPLOY / "prometheus/alerts.yml")),
            ("/run/secrets/observe_token", str(token)),
            ("sandhost:8080", f"127.0.0.1:{one.port}"),
        ):
            assert shipped in config
            config = config.replace(shipped, here)
        place = folder / "prometheus"
        place.mkdir()
        with prometheus(config, place) as server:
            wait_until(lambda: server.query('count_over_time(up{job="sandhost"}[1m]) > 2'))
            yield server
        assert one.end() == 0, one.said()


def test_the_token_of_the_file_opens_the_service_to_prometheus(scraped):
    assert scraped.query("up") == {(): 1}
    assert scraped.query("sandhost_serve_sessions_live") == {(): 1}
    assert scraped.query("sandhost_serve_requests_admitted_total > 0")


def test_prometheus_tells_how_long_requests_took(scraped):
    calls = '{door="http",operation="call",status="2xx"'
    took = scraped.query(f"sandhost_serve_request_seconds_sum{calls}}}")
    most = scraped.query(f"histogram_quantile(1, sandhost_serve_request_seconds_bucket{calls}}})")
    assert len(took) == len(most) == 1
    assert 0 < next(iter(took.values())) <= next(iter(most.values()))  # of a single call
    count = scraped.query(f"sandhost_serve_request_seconds_count{calls}}}")
    assert list(count.values()) == [1]


def queries() -> list[str]:
    targets = [target for panel in BOARD["panels"] for target in panel.get("targets", [])]
    return [target["expr"] for target in targets if "sandhost_serve_" in target["expr"]]


def test_every_query_about_the_service_has_an_answer(scraped):
    assert len(queries()) > 5
    for expression in queries():
        expression = expression.replace("$__rate_interval", "1m")
        expression = re.sub(r"\$(job|instance)", ".*", expression)
        assert scraped.query(expression), expression


def test_the_alerts_are_evaluated_and_none_comes(scraped):
    def rules() -> list[dict[str, Any]]:
        groups = scraped.get("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_until(lambda: rules() and all(rule["health"] == "ok" for rule in rules()))
    ours = {rule["name"]: rule["state"] for rule in rules() if "Serve" in rule["name"]}
    assert set(ours.values()) == {"inactive"}
    assert len(ours) == 4
    for name in re.findall(r"sandhost_serve_\w+", (DEPLOY / "prometheus/alerts.yml").read_text()):
        assert scraped.query(name), name


# ---- Grafana, which is not here: what it reads is held against the rest ----


def test_grafana_is_given_the_dashboard_and_the_prometheus_of_the_compose_file():
    source = yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")
    boards = yaml(DEPLOY / "grafana/provisioning/dashboards/sandhost.yaml")
    services = yaml(DEPLOY / "container/compose.yaml")["services"]
    assert source["apiVersion"] == boards["apiVersion"] == 1
    (prometheus_source,), (provider,) = source["datasources"], boards["providers"]
    assert prometheus_source["type"] == "prometheus"
    host, port = re.fullmatch(r"http://(\w+):(\d+)", prometheus_source["url"]).groups()
    assert services[host]["ports"][0].endswith(f":{port}")
    mounts = [volume.split(":") for volume in services["grafana"]["volumes"]]
    (board,) = [m for m in mounts if m[0].endswith("sandhost.json")]
    assert Path(board[1]).parent == Path(provider["options"]["path"])
    places = [m for s in ("grafana", "prometheus") for m in services[s]["volumes"]]
    for place in places:
        if place.startswith("."):
            assert (DEPLOY / "container" / place.split(":")[0]).exists(), place


def test_the_compose_file_holds_the_service_tight():
    service = yaml(DEPLOY / "container/compose.yaml")["services"]["sandhost"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert {"no-new-privileges:true", "seccomp=./seccomp.json"} == set(service["security_opt"])
    assert service["pids_limit"]
    assert service["mem_limit"] == service["memswap_limit"]
