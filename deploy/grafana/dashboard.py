"""Build the Grafana dashboard: `python deploy/grafana/dashboard.py`, with PyPI's grafana-foundation-sdk.

Grafana 11.6 or later imports sandhost.json, which is committed, and asks for the data source.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import heatmap as heatmap_models
from grafana_foundation_sdk.models import prometheus as prometheus_models

OUT = Path(__file__).with_name("sandhost.json")
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


class Panel(NamedTuple):
    """A graph: its lines are queries, each with its legend. `$$` in a query chooses the processes."""

    title: str
    about: str
    unit: str  # as Grafana calls it
    lines: Sequence[tuple[str, str]]
    stacked: bool = False
    log: bool = False


class Number(NamedTuple):
    """The newest value of one query, and from where on it is red."""

    title: str
    unit: str
    query: str
    red_from: float | None = None


def quantile(q: float, by: str) -> str:
    buckets = "rate(sandhost_latency_seconds_bucket$$[$__rate_interval])"
    return f"histogram_quantile({q}, sum by (le, {by}) ({buckets}))"


def request_quantile(q: float) -> str:
    buckets = "rate(sandhost_serve_request_seconds_bucket$$[$__rate_interval])"
    return f"histogram_quantile({q}, sum by (le, door, operation) ({buckets}))"


def rate(metric: str, by: str = "") -> str:
    rates = f"rate({metric}$$[$__rate_interval])"
    return f"sum by ({by}) ({rates})" if by else f"sum({rates})"


TENANT_SHARE = "sandhost_tenant_memory_bytes$$ / sandhost_tenant_memory_limit_bytes$$"

GLANCE = (
    Number("Guests alive", "short", "sum(sandhost_guests_live$$)"),
    Number("Pressure, 0 to 4", "short", "max(sandhost_pressure_level$$)", 2),
    Number(
        "Memory, of the limit",
        "percentunit",
        "max(sandhost_committed_bytes$$ / sandhost_memory_limit_bytes$$)",
        0.9,
    ),
    Number("Spawns that fail, a second", "short", rate("sandhost_spawn_failures_total"), 1),
    Number("Slots in quarantine", "short", "sum(sandhost_quarantined_slots$$)", 1),
    Number(
        "Collector's share of the cores",
        "percentunit",
        "max(rate(sandhost_gc_collecting_seconds_total$$[$__rate_interval]) / sandhost_gc_cores$$)",
        0.25,
    ),
)

ROWS: dict[str, Sequence[Panel]] = {
    "Work": (
        Panel(
            "Spawns and calls",
            "Guests started, and calls made, a second.",
            "ops",
            [
                (
                    "sum by (operation) (rate(sandhost_latency_seconds_count$$[$__rate_interval]))",
                    "{{operation}}",
                ),
                (rate("sandhost_host_calls_total"), "host calls"),
            ],
        ),
        Panel(
            "Latency",
            "Half of the operations took less than the lower line, all but one in a hundred less "
            "than the upper.",
            "s",
            [
                (quantile(0.5, "operation"), "{{operation}} p50"),
                (quantile(0.99, "operation"), "{{operation}} p99"),
            ],
            log=True,
        ),
        Panel(
            "What ended badly",
            "A second, by reason.",
            "ops",
            [
                (rate("sandhost_traps_total"), "traps"),
                (rate("sandhost_deadlines_total"), "deadlines"),
                (rate("sandhost_cancels_total"), "cancelled"),
                (rate("sandhost_memory_refusals_total"), "memory refused"),
                (rate("sandhost_spawn_failures_total"), "spawns failed"),
                (rate("sandhost_reset_failures_total"), "resets failed"),
            ],
        ),
        Panel(
            "Event loops",
            "Guests that could wait, and the threads that compute for them.",
            "short",
            [
                ("sum(sandhost_stacks_live$$)", "guests with a stack"),
                ("sum(sandhost_workers_threads$$ - sandhost_workers_idle$$)", "workers busy"),
                ("sum(sandhost_workers_queued$$)", "guests that wait for one"),
            ],
        ),
    ),
    "Service": (
        Panel(
            "Requests",
            "Of `sandhost serve`: let in and refused, a second. Without a service these stay empty.",
            "ops",
            [
                (rate("sandhost_serve_requests_admitted_total"), "let in"),
                (rate("sandhost_serve_requests_refused_total", "why"), "refused: {{why}}"),
            ],
        ),
        Panel(
            "How long requests take",
            "From the first byte to the last of the answer. Half took less than p50, all but one in a "
            "hundred less than p99.",
            "s",
            [
                (request_quantile(0.5), "{{door}} {{operation}} p50"),
                (request_quantile(0.99), "{{door}} {{operation}} p99"),
            ],
            log=True,
        ),
        Panel(
            "In service",
            "The limit moves with what the machine can do; who waits comes after it.",
            "short",
            [
                ("sum(sandhost_serve_requests_in_flight$$)", "in service"),
                ("sum(sandhost_serve_requests_limit$$)", "limit"),
                ("sum(sandhost_serve_requests_waiting$$)", "waiting"),
                ("sum(sandhost_serve_bags_live$$)", "not over"),
            ],
        ),
        Panel(
            "Sessions",
            "Guests that stay between calls.",
            "short",
            [
                ("sum(sandhost_serve_sessions_live$$)", "open"),
                ("sum(sandhost_serve_sessions_in_use$$)", "with a call in them"),
            ],
        ),
    ),
    "Memory": (
        Panel(
            "Where it is",
            "Committed memory counts against the limit; a part of it is resident.",
            "bytes",
            [
                ("sum(sandhost_committed_bytes$$)", "committed"),
                ("sum(sandhost_memory_limit_bytes$$)", "limit"),
                ("sum(sandhost_process_rss_bytes$$)", "resident"),
                ("sum(sandhost_pressure_limit_bytes$$)", "limit of the process"),
                ("sum(sandhost_warm_bytes$$)", "warm"),
                ("sum(sandhost_queued_bytes$$)", "about to go back"),
                ("sum(sandhost_stack_bytes$$)", "stacks"),
                ("sum(sandhost_image_bytes$$)", "images"),
            ],
        ),
        Panel(
            "Pressure",
            "What the controller does, a second; from level 2 on it refuses, at 4 it ends guests.",
            "ops",
            [
                (rate("sandhost_pressure_actions_total", "action"), "{{action}}"),
                (rate("sandhost_pressure_refusals_total"), "spawns refused"),
                (rate("sandhost_evictions_total"), "guests ended"),
            ],
        ),
        Panel(
            "Time at each level",
            "Of the pressure, in shares of the time.",
            "percentunit",
            [(rate("sandhost_pressure_level_seconds_total", "level"), "{{level}}")],
            stacked=True,
        ),
        Panel(
            "What closed guests leave",
            "Given back to the operating system, or reset in place for the next guest.",
            "Bps",
            [
                (rate("sandhost_returned_bytes_total"), "given back"),
                (rate("sandhost_restored_bytes_total"), "reset in place"),
            ],
        ),
        Panel(
            "Slots that spawns found",
            "The same plugin's and tenant's costs nothing; another's is mapped anew.",
            "ops",
            [
                (rate("sandhost_slots_same_total"), "the same"),
                (rate("sandhost_slots_cold_total"), "empty"),
                (rate("sandhost_slots_other_total"), "another's"),
            ],
            stacked=True,
        ),
    ),
    "Who": (
        Panel(
            "Memory by tenant",
            "Committed; the largest by name, all others together.",
            "bytes",
            [("sum by (tenant) (sandhost_tenant_memory_bytes$$)", "{{tenant}}")],
            stacked=True,
        ),
        Panel(
            "Share of the tenant's limit",
            "At 1, its spawns and growth are refused.",
            "percentunit",
            [
                (
                    f"max by (tenant) ({TENANT_SHARE})",
                    "{{tenant}}",
                )
            ],
        ),
        Panel(
            "Handles by tenant",
            "What they count for.",
            "bytes",
            [("sum by (tenant) (sandhost_tenant_handle_bytes$$)", "{{tenant}}")],
            stacked=True,
        ),
        Panel(
            "Refused, by tenant",
            "Spawns and calls a second, by a quota in a time or under pressure.",
            "ops",
            [(rate("sandhost_tenant_refusals_total", "tenant"), "{{tenant}}")],
            stacked=True,
        ),
        Panel(
            "Guests by plugin",
            "Alive; the plugins that spawned most by name, all others together.",
            "short",
            [("sum by (plugin) (sandhost_plugin_guests_live$$)", "{{plugin}}")],
            stacked=True,
        ),
        Panel(
            "Spawns by plugin",
            "A second.",
            "ops",
            [(rate("sandhost_plugin_spawns_total", "plugin"), "{{plugin}}")],
            stacked=True,
        ),
    ),
    "Handles and their collector": (
        Panel(
            "Heap and goal",
            "What live handles count for; a cycle begins at the trigger, to end at the goal.",
            "bytes",
            [
                ("sum(sandhost_handle_bytes$$)", "live"),
                ("sum(sandhost_handle_goal_bytes$$)", "goal"),
                ("sum(sandhost_gc_trigger_bytes$$)", "trigger"),
                ("sum(sandhost_gc_last_live_after_bytes$$)", "left by the last cycle"),
            ],
        ),
        Panel(
            "Handles",
            "Alive, and objects that wait to be dropped.",
            "short",
            [
                ("sum(sandhost_handles$$)", "live"),
                ("sum(sandhost_handles_finalizers_queued$$)", "to be dropped"),
            ],
        ),
        Panel(
            "Collections",
            "A second, by the trigger that was due.",
            "ops",
            [(rate("sandhost_gc_cycles_by_reason_total", "reason"), "{{reason}}")],
            stacked=True,
        ),
        Panel(
            "CPU time of collecting",
            "In cores: of the marker, of guests that allocate, of the sweep.",
            "short",
            [
                (rate("sandhost_handles_mark_seconds_total"), "marking"),
                (rate("sandhost_handles_assist_seconds_total"), "assists"),
                (rate("sandhost_handles_sweep_seconds_total"), "sweeping"),
            ],
            stacked=True,
        ),
        Panel(
            "The last cycle",
            "By the clock; and the longest that the collector ever held a thread.",
            "s",
            [
                ("max(sandhost_gc_last_mark_seconds$$)", "marking"),
                ("max(sandhost_gc_last_sweep_seconds$$)", "sweeping"),
                ("max(sandhost_handles_longest_stop_seconds$$)", "longest stop"),
            ],
            log=True,
        ),
    ),
}


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    chosen = '{job=~"$job",instance=~"$instance"}'
    return (
        prometheus.Dataquery()
        .expr(expression.replace("$$", chosen))
        .legend_format(legend)
        .datasource(SOURCE)
    )


def graph(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.about)
        .unit(panel.unit)
        .min(0)
        .datasource(SOURCE)
        .height(8)
        .span(8)
        .fill_opacity(60 if panel.stacked else 8)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if panel.stacked:
        made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if panel.log:
        log = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        made.scale_distribution(log)
    for letter, (expression, legend) in zip("ABCDEFGHIJ", panel.lines):
        made.with_target(query(expression, legend).range().ref_id(letter))
    return made


def number(shown: Number) -> stat.Panel:
    steps = [models.Threshold(value=None, color="green")]
    if shown.red_from is not None:
        steps.append(models.Threshold(value=shown.red_from, color="red"))
    limits = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
    return (
        stat.Panel()
        .title(shown.title)
        .unit(shown.unit)
        .datasource(SOURCE)
        .height(4)
        .span(4)
        .thresholds(limits)
        .with_target(query(shown.query).range().ref_id("A"))
    )


def close_heatmap() -> heatmap.Panel:
    expression = (
        'sum by (le) (increase(sandhost_latency_seconds_bucket{operation="close",job=~"$job",'
        'instance=~"$instance"}[$__rate_interval]))'
    )
    of_buckets = query(expression, "{{le}}").range().ref_id("A")
    return (
        heatmap.Panel()
        .title("Close")
        .description("How many guests took how long to end and give their memory back.")
        .datasource(SOURCE)
        .height(8)
        .span(8)
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit("s"))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_models.HeatmapColorMode.SCHEME)
            .scheme("Blues")
        )
        .with_target(of_buckets.format(prometheus_models.PromQueryFormat.HEATMAP))
    )


def variables() -> list[dashboard.QueryVariable | dashboard.DatasourceVariable]:
    def values_of(label: str, chosen: str) -> dashboard.QueryVariable:
        return (
            dashboard.QueryVariable(label)
            .label(label.capitalize())
            .datasource(SOURCE)
            .query(f"label_values(sandhost_guests_live{chosen}, {label})")
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(models.VariableOption(text="All", value="$__all"))
        )

    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    return [source, values_of("job", ""), values_of("instance", '{job=~"$job"}')]


def build() -> str:
    """Return the dashboard as the text of its file."""
    board = (
        dashboard.Dashboard("sandhost")
        .uid("sandhost")
        .description("Guests, their memory, who holds it, and the collector of handles.")
        .tags(["sandhost"])
        .time("now-30m", "now")
        .refresh("10s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .variables(variables())
    )
    ids = itertools.count(1)
    for shown in GLANCE:
        board.with_panel(number(shown).id(next(ids)))
    for title, panels in ROWS.items():
        board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board.with_panel(graph(panel).id(next(ids)))
        if title == "Work":
            board.with_panel(close_heatmap().id(next(ids)))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUT.write_text(build())
    sys.stdout.write(f"{OUT.name}: {OUT.stat().st_size} bytes\n")
