"""See what a running host does and holds: metrics, captures, profiles, views.

metrics, otel             figures for Prometheus and OpenTelemetry (tables: of each figure's kind and help)
picture, views, report    one look at everything, as numbers and as a page; sharing, asking: between processes
http                      what Go's programs offer under /debug/pprof/; off unless `serve` is called
leaks                     what grew between two profiles, and who holds it
guests, paths             what guests in a call do; the way from a root to a handle
capture                   all handles and guests of one instant
pprof, speedscope         the formats of files
"""

import typing

from .capture import Capture, capture

if typing.TYPE_CHECKING:
    from .guests import guests_profile
    from .http import Server, handle, serve
    from .leaks import Growth, grown
    from .paths import Path, path_to

__all__ = [
    "Capture",
    "Growth",
    "Path",
    "Server",
    "capture",
    "grown",
    "guests_profile",
    "handle",
    "path_to",
    "serve",
]

_LATE = {
    "Growth": ".leaks",
    "grown": ".leaks",
    "Path": ".paths",
    "path_to": ".paths",
    "Server": ".http",
    "handle": ".http",
    "serve": ".http",
    "guests_profile": ".guests",
}


def __getattr__(name: str) -> typing.Any:
    """Import what not every capture needs when it is first named (PEP 562)."""
    import importlib

    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name], __name__), name)
