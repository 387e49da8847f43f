"""Prometheus metrics of a host, for the application's own registry and server.

    from prometheus_client import REGISTRY, start_http_server
    REGISTRY.register(HostCollector(host))
    start_http_server(9464)

or `prometheus_client.make_asgi_app()`, or `push_to_gateway`: what that library offers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from .buckets import BOUNDS_S, cumulative, sum_s
from .figures import FIGURES, Figure
from .names import Folder
from .reading import Reading

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["HostCollector"]

_LE = (*map(str, BOUNDS_S), "+Inf")


class HostCollector(Collector):
    """What a registry asks at each scrape. It holds the host weakly, and stops no guest.

    Two hosts need a registry each, since their metrics have the same names.

    Args:
        names: most tenants, and most plugins, that have a label of their own; the rest is summed
            under "other".
    """

    def __init__(self, host: Host, *, names: int = 50) -> None:
        self._host = weakref.ref(host)
        self._tenants, self._plugins = Folder(names), Folder(names)
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Return what there may be, without reading anything: a registry wants to know the names."""
        return [_family(figure) for figure in FIGURES]

    def collect(self) -> Iterator[Metric]:
        """Read the host; nothing when it is gone."""
        host = self._host()
        if host is None:
            return
        with self._lock:
            reading = Reading(host, self._tenants, self._plugins)
            families = [_filled(figure, reading) for figure in FIGURES]
        yield from (family for family in families if family.samples)


def _family(figure: Figure) -> Metric:
    return Metric(f"sandhost_{figure.name}", figure.help, figure.kind)


def _filled(figure: Figure, reading: Reading) -> Metric:
    family = _family(figure)
    name = family.name
    for values, value in figure.values(reading):
        labels = dict(zip(figure.labels, values))
        if figure.kind == "histogram":
            for bound, count in zip(_LE, (*cumulative(value), value.total)):
                family.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
            family.add_sample(f"{name}_count", labels, value.total)
            family.add_sample(f"{name}_sum", labels, sum_s(value))
        else:
            family.add_sample(f"{name}_total" if figure.kind == "counter" else name, labels, value)
    return family
