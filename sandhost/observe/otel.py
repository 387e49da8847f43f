"""Metrics and traces of a host by OpenTelemetry's API; where they go is the application's affair.

    watching = instrument(host)        # to the global providers
    watching.uninstrument()

The instruments are those of figures.py: `sandhost.guests_live` is Prometheus's `sandhost_guests_live`.
The API has no histogram that can be observed, so each latency is three counters, with the bounds as the
attribute `le`, as Prometheus stores them too.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, NoOpMeterProvider, Observation
from opentelemetry.trace import NoOpTracerProvider, TracerProvider

from ..errors import ConfigError
from .buckets import BOUNDS_S, cumulative, sum_s
from .figures import FIGURES, Figure
from .names import Folder
from .reading import Reading
from .traces import Traces

if TYPE_CHECKING:
    from ..host import Host

__all__ = ["Instrumentation", "instrument"]

_SCOPE = "sandhost"
_UNITS = {"bytes": "By", "seconds": "s", "ratio": "1", "": "1"}
_LE = (*map(str, BOUNDS_S), "+Inf")

_Observe = Callable[[CallbackOptions], Iterable[Observation]]


class Instrumentation:
    """What `instrument` has begun."""

    def __init__(self, traces: Traces | None, readings: _Readings | None) -> None:
        self._traces, self._readings = traces, readings

    def uninstrument(self) -> None:
        """End it: no more spans, and instruments that observe nothing. Idempotent."""
        if self._traces is not None:
            self._traces.stop()
        if self._readings is not None:
            self._readings.end()
        self._traces = self._readings = None


def instrument(
    host: Host,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    names: int = 50,
) -> Instrumentation:
    """Give a host's figures to a meter, and its spawns, calls, closes and collections to a tracer.

    Args:
        tracer_provider: None: the global one. With a `NoOpTracerProvider`, nothing is watched.
        meter_provider: likewise.
        names: most tenants, and most plugins, that metrics name; the rest is summed under "other".

    Raises:
        ConfigError: the host is watched already.
    """
    tracers = trace.get_tracer_provider() if tracer_provider is None else tracer_provider
    meters = metrics.get_meter_provider() if meter_provider is None else meter_provider
    if host.watcher is not None:
        raise ConfigError("the host is instrumented already: uninstrument it first")
    traces = readings = None
    if not isinstance(tracers, NoOpTracerProvider):
        traces = Traces(host, tracers.get_tracer(_SCOPE))
        traces.start(host)
    if not isinstance(meters, NoOpMeterProvider):
        readings = _Readings(host, names)
        _create_instruments(meters, readings)
    return Instrumentation(traces, readings)


class _Readings:
    """Readings for instruments that each ask for themselves, one after the other.

    One reading serves them all: who asks for a second time is in the next round.
    """

    def __init__(self, host: Host, names: int) -> None:
        self._host: Callable[[], Host | None] = weakref.ref(host)
        self._tenants, self._plugins = Folder(names), Folder(names)
        self._lock = threading.Lock()
        self._served: set[str] = set()
        self._reading: Reading | None = None

    def end(self) -> None:
        """Have nothing to read any more."""
        self._host = lambda: None

    def values(self, instrument: str, figure: Figure) -> list[tuple[tuple[str, ...], Any]]:
        """Return what there is of a figure, for one instrument."""
        host = self._host()
        if host is None:
            return []
        with self._lock:
            if self._reading is None or instrument in self._served:
                self._served.clear()
                self._reading = Reading(host, self._tenants, self._plugins)
            self._served.add(instrument)
            return list(figure.values(self._reading))


def _create_instruments(meters: MeterProvider, readings: _Readings) -> None:
    meter = meters.get_meter(_SCOPE)
    for figure in FIGURES:
        name = f"sandhost.{figure.name}"
        unit = _UNITS[figure.unit]
        if figure.kind == "histogram":
            parts = {".bucket": (_buckets, "1"), ".count": (_count, "1"), ".sum": (_sum, unit)}
            for end, (part, of_unit) in parts.items():
                observe = _observer(readings, name + end, figure, part)
                meter.create_observable_counter(name + end, [observe], of_unit, figure.help)
        else:
            observe = _observer(readings, name, figure, _number)
            create = (
                meter.create_observable_gauge
                if figure.kind == "gauge"
                else meter.create_observable_counter
            )
            create(name, [observe], unit, figure.help)


_Part = Callable[[Any], Iterable[tuple[dict[str, str], float]]]


def _observer(readings: _Readings, instrument: str, figure: Figure, part: _Part) -> _Observe:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        for labels, value in readings.values(instrument, figure):
            attributes = dict(zip(figure.labels, labels))
            for more, number in part(value):
                yield Observation(number, {**attributes, **more})

    return observe


def _number(value: float) -> Iterable[tuple[dict[str, str], float]]:
    yield {}, value


def _buckets(latency: Any) -> Iterable[tuple[dict[str, str], float]]:
    for bound, count in zip(_LE, (*cumulative(latency), latency.total)):
        yield {"le": bound}, count


def _count(latency: Any) -> Iterable[tuple[dict[str, str], float]]:
    yield {}, latency.total


def _sum(latency: Any) -> Iterable[tuple[dict[str, str], float]]:
    yield {}, sum_s(latency)
