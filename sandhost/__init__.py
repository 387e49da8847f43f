"""Run untrusted WebAssembly plugins, each in a memory region of its own.

    cli, bench, demo, doctor      what people use from a shell
    host                          puts the parts together, owns their lifetimes
    govern                        statistics
    plugin, guest, calls,         what is loaded, what runs, how calls cross
      hostcalls, wasi
    memory, regions, modules      a guest's bytes; what came back; reading and compiling modules
    _ffi, _wasmtime               the doors to C and to wasmtime's library
    errors, limits, units, _log   the ground

A file imports only from floors below its own.
"""

from .errors import (
    ConfigError,
    DeadlineExceeded,
    Frame,
    GuestBusy,
    GuestCancelled,
    GuestClosed,
    GuestError,
    GuestExit,
    GuestTrap,
    HostCallError,
    InvalidHandle,
    LimitExceeded,
    ModuleError,
    NativeError,
    OutOfBounds,
    OutOfFuel,
    OutOfMemory,
    RegionFullError,
    SandhostError,
)
from .govern.stats import Latency, MemStats
from .guest import Guest, GuestStats
from .host import Host
from .limits import Limits
from .memory import GuestMemory
from .plugin import Plugin, PluginStats, Tenant
from .regions import Reclaim
from .wasi import Dir, Wasi

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DeadlineExceeded",
    "Dir",
    "Frame",
    "Guest",
    "GuestBusy",
    "GuestCancelled",
    "GuestClosed",
    "GuestError",
    "GuestExit",
    "GuestMemory",
    "GuestStats",
    "GuestTrap",
    "Host",
    "HostCallError",
    "InvalidHandle",
    "Latency",
    "LimitExceeded",
    "Limits",
    "MemStats",
    "ModuleError",
    "NativeError",
    "OutOfBounds",
    "OutOfFuel",
    "OutOfMemory",
    "Plugin",
    "PluginStats",
    "Reclaim",
    "RegionFullError",
    "SandhostError",
    "Tenant",
    "Wasi",
    "__version__",
]
