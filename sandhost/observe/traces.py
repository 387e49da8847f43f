"""Spans of what a host does: spawn, call, close, collect.

Whoever watches a plugin puts its own `guest_class`, `spawn_from` and `call_from` into the instance, over
those of the class (plugin.py); without that, nothing on the way of a call knows that spans exist.

    sandhost.plugin_call ─┬─ sandhost.spawn        what the plugin allows is one step in C, and one span
                          ├─ sandhost.call ── the spans of host functions, of guests they call …
                          └─ sandhost.close

The caller's context is the parent. It goes with the task over every `await`, and host functions run in
it, on whatever thread the guest computes. Spans hold names of plugins, functions and tenants, cut and
cleaned; no arguments, no results, and no words of errors that are not sandhost's own.
"""

from __future__ import annotations

import functools
import time
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.context import attach, detach
from opentelemetry.trace import Span, Status, StatusCode, Tracer, set_span_in_context

from ..errors import GuestTrap, SandhostError
from ..guest import BoundFunction, Guest
from ..plugin import Plugin
from .names import label

if TYPE_CHECKING:
    from ..aio.call import OnCancel
    from ..gc.collector import Collector
    from ..gc.trace import Cycle
    from ..host import Host
    from ..limits import Limits
    from ..regions import Reclaim
    from ..tenants import Tenant

__all__ = ["Traces"]

_FUNCTION = "code.function.name"  # OpenTelemetry's semantic conventions, of this and the next
_ERROR = "error.type"
_PLUGIN, _TENANT, _TRAP = "sandhost.plugin", "sandhost.tenant", "sandhost.trap.code"
_WATCHED = ("guest_class", "spawn_from", "call_from")


class _Block:
    """A span that is current within a `with` block, and says how that ended."""

    __slots__ = ("_attributes", "_name", "_token", "_tracer", "span")

    def __init__(self, tracer: Tracer, name: str, attributes: dict[str, str]) -> None:
        self._tracer, self._name, self._attributes = tracer, name, attributes

    def __enter__(self) -> Span:
        self.span = self._tracer.start_span(self._name, attributes=self._attributes)
        self._token = attach(set_span_in_context(self.span))
        return self.span

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        detach(self._token)
        if error is not None and self.span.is_recording():
            _record(self.span, error)
        self.span.end()


class Traces:
    """Watches one host, from `start` to `stop`. Guests that were there before have no spans."""

    def __init__(self, host: Host, tracer: Tracer) -> None:
        self._host = weakref.ref(host)
        self._tracer = tracer
        self.on = True
        self._guest_class = _traced_guest(self)

    # ---- what a host tells its watcher ----

    def start(self, host: Host) -> None:
        """Watch what there is, and what will be."""
        host.watcher = self
        for plugin in host.plugins():
            self.loaded(plugin)
        if host.handles_and_gc is not None:
            self.collects(host.handles_and_gc[1])

    def stop(self) -> None:
        """Watch nothing any more."""
        self.on = False
        host = self._host()
        if host is None:
            return
        host.watcher = None
        for plugin in host.plugins():
            for name in _WATCHED:
                vars(plugin).pop(name, None)
        if host.handles_and_gc is not None:
            host.handles_and_gc[1].on_cycle = None

    def loaded(self, plugin: Plugin, /) -> None:
        """Watch a plugin. It is held weakly by what it is given here."""
        this = weakref.ref(plugin)
        vars(plugin).update(
            guest_class=self._guest_class,
            spawn_from=functools.partial(self._spawn, this),
            call_from=functools.partial(self._plugin_call, this),
        )

    def collects(self, collector: Collector, /) -> None:
        """Watch a collector."""
        collector.on_cycle = self._cycle

    # ---- spans ----

    def span(
        self, name: str, plugin: Plugin, function: str | None = None, tenant: str | None = None
    ) -> _Block:
        """Have a span for a block, a child of the caller's."""
        attributes = {_PLUGIN: label(plugin.name)}
        if function is not None:
            attributes[_FUNCTION] = label(function)
        if tenant is not None:
            attributes[_TENANT] = label(tenant)
        return _Block(self._tracer, name, attributes)

    def _spawn(
        self,
        plugin: weakref.ReferenceType[Plugin],
        origin: Any,
        limits: Limits | None,
        tenant: str | Tenant | None,
        *rest: Any,
        **options: Any,
    ) -> Guest:
        this = _alive(plugin)
        with self.span("sandhost.spawn", this, tenant=_tenant_name(tenant)):
            return Plugin.spawn_from(this, origin, limits, tenant, *rest, **options)

    def _plugin_call(
        self,
        plugin: weakref.ReferenceType[Plugin],
        origin: Any,
        name: str,
        arguments: tuple[Any, ...],
        limits: Limits | None,
        tenant: str | Tenant | None,
    ) -> Any:
        this = _alive(plugin)
        with self.span("sandhost.plugin_call", this, function=name, tenant=_tenant_name(tenant)):
            return Plugin.call_from(this, origin, name, arguments, limits, tenant)

    def _cycle(self, cycle: Cycle) -> None:
        """Make the span of a cycle that has ended; a child of whoever called `collect()` and led it."""
        end_ns = time.time_ns()
        span = self._tracer.start_span(
            "sandhost.collect",
            start_time=end_ns - round(cycle.duration_s * 1e9),
            attributes={
                "sandhost.gc.reason": label(cycle.reason),
                "sandhost.gc.cycle": cycle.number,
                "sandhost.gc.live_bytes": cycle.live_after_bytes,
                "sandhost.gc.swept_bytes": cycle.swept_bytes,
                "sandhost.gc.longest_stop_ns": cycle.longest_stop_ns,
            },
        )
        span.end(end_ns)


def _alive(plugin: weakref.ReferenceType[Plugin]) -> Plugin:
    this = plugin()
    assert this is not None  # it has just been called
    return this


def _tenant_name(tenant: str | Tenant | None) -> str | None:
    return tenant if tenant is None or isinstance(tenant, str) else tenant.name


def _record(span: Span, error: BaseException) -> None:
    """Say what ended a block, by its type; what it says only if the words are ours."""
    kind = type(error)
    ours = isinstance(error, SandhostError)
    name = f"sandhost.{kind.__name__}" if ours else f"{kind.__module__}.{kind.__qualname__}"
    said = {"exception.message": str(error)} if ours else {}
    span.add_event("exception", {"exception.type": name, **said})
    span.set_attribute(_ERROR, name)
    if isinstance(error, GuestTrap):
        span.set_attribute(_TRAP, error.code)
    span.set_status(Status(StatusCode.ERROR))


def _traced_guest(traces: Traces) -> type[Guest]:
    """Return a class of guests whose calls and end have spans, as long as these are wanted."""

    class TracedGuest(Guest):
        __slots__ = ()

        def call(self, name: str, *arguments: Any) -> Any:
            if not traces.on:
                return super().call(name, *arguments)
            with traces.span("sandhost.call", self.plugin, function=name):
                return super().call(name, *arguments)

        def func(self, name: str) -> BoundFunction:
            super().func(name)  # raises if there is none
            bound = functools.partial(self.call, name)
            bound.call_async = functools.partial(self.call_async, name)  # type: ignore[attr-defined]
            return cast("BoundFunction", bound)

        async def call_async(
            self, name: str, *arguments: Any, on_cancel: OnCancel = "close"
        ) -> Any:
            if not traces.on:
                return await super().call_async(name, *arguments, on_cancel=on_cancel)
            with traces.span("sandhost.call", self.plugin, function=name):
                return await super().call_async(name, *arguments, on_cancel=on_cancel)

        def close(self) -> Reclaim:
            if not traces.on or self._reclaim is not None:
                return super().close()
            with traces.span("sandhost.close", self.plugin) as span:
                reclaim = super().close()
                span.set_attribute("sandhost.reclaim.policy", reclaim.policy)
                span.set_attribute("sandhost.reclaim.bytes", reclaim.bytes)
                return reclaim

    TracedGuest.__qualname__ = TracedGuest.__name__ = "Guest"
    return TracedGuest
