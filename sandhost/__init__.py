"""Run untrusted WebAssembly plugins, each in a memory region of its own.

    cli, bench, demo, doctor      what people use from a shell
    serve, client                 plugins of many tenants behind HTTP and gRPC; who asks for them
    interpreters                  Python and JavaScript as guests
    observe                       what a host does and holds: metrics, traces, profiles, views
    host, governed, loader        puts the parts together, owns their lifetimes; its memory's hands; plugins
    gc, govern                    when the handle heap is collected, and how hard; statistics, pressure
    plugin, snapshot, guest,      what is loaded, what a guest was, what runs; how calls cross
      aio, calls, hostcalls         and how they wait, on an event loop
    pages                         buffers for requests and results
    events                        what happens, for whoever listens
    memory, regions, tenants,     a guest's bytes; what came back; who shares limits; what WASI gives;
      wasi, modules, heap         reading and compiling modules; objects that guests hold by number
    _windows                      C's memory as memoryviews
    _ffi, _wasmtime               the doors to C and to wasmtime's library
    protocol                      what the service and its clients both say
    errors, limits, quotas,       the ground
      units, _log, _closing

A file imports only from floors below its own.
"""

import typing

from .errors import (
    BufferBusy,
    ConfigError,
    DeadlineExceeded,
    Frame,
    GuestBusy,
    GuestCancelled,
    GuestClosed,
    GuestError,
    GuestEvicted,
    GuestExit,
    GuestTrap,
    HostCallError,
    InvalidBuffer,
    InvalidHandle,
    LimitExceeded,
    ModuleError,
    NativeError,
    OutOfBounds,
    OutOfFuel,
    OutOfMemory,
    Overloaded,
    PoolClosed,
    PoolEmpty,
    QuotaExceeded,
    RegionFullError,
    SandhostError,
    SnapshotError,
)
from .limits import Limits
from .quotas import Quotas

if typing.TYPE_CHECKING:
    from . import aio, interpreters, observe
    from .callbacks import Callback
    from .events import Events
    from .govern.stats import Latency, MemStats, NodeStats
    from .guest import Guest, GuestStats
    from .heap import HandleHeap, HandleInfo
    from .heap_figures import HeapFigures
    from .heap_kinds import Handle
    from .host import Host
    from .memory import GuestMemory
    from .pages import Buffer, PagePool, PoolStats
    from .plugin import Plugin, PluginStats
    from .regions import Reclaim
    from .snapshot import Snapshot
    from .tenants import Tenant
    from .wasi import Dir, Wasi

__version__ = "0.1.0"

__all__ = [
    "Buffer",
    "BufferBusy",
    "Callback",
    "ConfigError",
    "DeadlineExceeded",
    "Dir",
    "Events",
    "Frame",
    "Guest",
    "GuestBusy",
    "GuestCancelled",
    "GuestClosed",
    "GuestError",
    "GuestEvicted",
    "GuestExit",
    "GuestMemory",
    "GuestStats",
    "GuestTrap",
    "Handle",
    "HandleHeap",
    "HandleInfo",
    "HeapFigures",
    "Host",
    "HostCallError",
    "InvalidBuffer",
    "InvalidHandle",
    "Latency",
    "LimitExceeded",
    "Limits",
    "MemStats",
    "ModuleError",
    "NativeError",
    "NodeStats",
    "OutOfBounds",
    "OutOfFuel",
    "OutOfMemory",
    "Overloaded",
    "PagePool",
    "Plugin",
    "PluginStats",
    "PoolClosed",
    "PoolEmpty",
    "PoolStats",
    "QuotaExceeded",
    "Quotas",
    "Reclaim",
    "RegionFullError",
    "SandhostError",
    "Snapshot",
    "SnapshotError",
    "Tenant",
    "Wasi",
    "__version__",
    "aio",
    "interpreters",
    "observe",
]

_LATE = {
    "Buffer": ".pages",
    "Callback": ".callbacks",
    "Dir": ".wasi",
    "Events": ".events",
    "Guest": ".guest",
    "GuestStats": ".guest",
    "Handle": ".heap_kinds",
    "HandleHeap": ".heap",
    "HandleInfo": ".heap",
    "HeapFigures": ".heap_figures",
    "GuestMemory": ".memory",
    "Host": ".host",
    "Latency": ".govern.stats",
    "MemStats": ".govern.stats",
    "NodeStats": ".govern.stats",
    "PagePool": ".pages",
    "Plugin": ".plugin",
    "PluginStats": ".plugin",
    "PoolStats": ".pages",
    "Reclaim": ".regions",
    "Snapshot": ".snapshot",
    "Tenant": ".tenants",
    "Wasi": ".wasi",
}

_ROOMS = frozenset({"aio", "interpreters", "observe"})


def __getattr__(name: str) -> typing.Any:
    """Import a name when it is first used (PEP 562): a client of the service needs neither C nor wasmtime."""
    import importlib

    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATE[name], __name__), name)
    return value
