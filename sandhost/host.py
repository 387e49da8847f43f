"""The host: puts engine, region pool, cache and host functions together, and owns their lifetimes.

It is what users hold, so most of the file is what its methods say; what they do is in other files.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ._closing import Closing
from ._ffi import failure, ffi, lib
from .errors import ConfigError, GuestClosed, SandhostError, SnapshotError
from .govern.census import GuestRow, read_guests
from .govern.slots import SlotRow, read_slots
from .govern.stats import (
    Latency,
    MemStats,
    NodeStats,
    WorkerStats,
    read_latency,
    read_nodes,
    read_stats,
    read_workers,
)
from .limits import UNLIMITED
from .loader import Loader
from .mapped import MappedGuests
from .regions import policy_number
from .tenants import Quotas, Tenant, Tenants
from .units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from .events import Events
    from .gc.collector import Collector
    from .govern.pressure import Pressure
    from .govern.protocol import Released
    from .heap import HandleHeap
    from .hostcalls import HostFunction
    from .plugin import Plugin
    from .snapshot import Snapshot

# What a host may not need is imported where it does: see `function`.

__all__ = ["Host"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SMALLEST_STACK, _LARGEST_STACK = 64 << 10, 1536 << 10
_NO_QUOTAS = Quotas()
_MOST_WORKERS = 64
_MOST_HANDLES = 1 << 26
_MOST_GUESTS = 28_000  # 4 GiB of address space each, in 47 bits
_MOST_REALTIME = 98


class Watcher(Protocol):
    """Who wants to know of plugins and of the collector, in order to watch them."""

    def loaded(self, plugin: Plugin, /) -> None:
        """A plugin was loaded, and nobody has it yet."""

    def collects(self, collector: Collector, /) -> None:
        """The collector was made, and has not started. The host's lock is held."""


class Host(Closing):
    """Where plugins are loaded and guests live. Close it, or use it in a `with` block.

    Args:
        memory_limit: bytes (or "4 GiB") that all guests together may have committed; None: nine
            tenths of `process_limit`, or no limit.
        process_limit: bytes that the whole process may have resident, or "cgroup" for the limit of its
            cgroup; None: no limit. With one, `pressure` watches from the beginning.
        reclaim: what happens to a guest's memory at its end. "immediate": all of it is back with the
            operating system when `close()` returns. "warm": up to `warm_guest` bytes a guest and
            `warm_total` in all are reset in place and stay resident for the next one; they go back
            after `warm_idle` seconds. "lazy": the kernel takes the pages when it needs them.
        max_guests: most linear memories alive at once, 1 to 28,000.
        stack: bytes of stack for a guest's calls, 64 KiB to 1.5 MiB.
        tenant_memory: memory limit of a tenant that was not given one of its own.
        handles: handles that guests and the application may hold at once, up to 67,108,864.
        handle_memory: bytes that the objects behind them may count for; None: no limit.
        cache: False keeps compiled code out of the cache directory (`$SANDHOST_CACHE_DIR`, else
            `~/.cache/sandhost`).
        optimize: False compiles faster and runs slower.
        workers: most threads that run calls of `call_async` which compute; None: one a processor, 4 at
            the most. 0: they run on the event loop, in slices of 2 ms, which others wait for in turn.
        background: True has workers run only while nothing else in this control group wants their processor
            (`SCHED_IDLE`, https://man7.org/linux/man-pages/man7/sched.7.html): for programs that others wait
            for, like a server, and that do not use all processors themselves. Of one processor they get a
            tenth of the weight of others in any case.
        realtime: the highest real-time priority (sched(7)'s `SCHED_FIFO`), 0 to 98, of threads that call guests. The
            thread that ends calls which take too long gets one more: it could not interrupt them otherwise.
        numa_bind: pages come from the guest's own NUMA node or not at all, instead of preferably.

    Raises:
        ConfigError: a value cannot be meant.
        NativeError: address space for the regions cannot be reserved, or the process may not have such a priority,
            for want of `RLIMIT_RTPRIO` or `CAP_SYS_NICE`.
    """

    def __init__(
        self,
        *,
        memory_limit: int | str | None = None,
        process_limit: int | str | None = None,
        reclaim: str = "warm",
        max_guests: int = 16_384,
        warm_guest: int | str = "2 MiB",
        warm_total: int | str = "256 MiB",
        warm_idle: float | str = 10.0,
        stack: int | str = "512 KiB",
        tenant_memory: int | str | None = None,
        handles: int = 10_000_000,
        handle_memory: int | str | None = None,
        cache: bool = True,
        cache_limit: int | str = "2 GiB",
        optimize: bool = True,
        workers: int | None = None,
        background: bool = False,
        realtime: int = 0,
        numa_bind: bool = False,
    ) -> None:
        if workers is None:
            workers = min(4, os.cpu_count() or 1)
        stack_bytes = parse_bytes(stack)
        if not _SMALLEST_STACK <= stack_bytes <= _LARGEST_STACK:
            raise ConfigError(f"stack is {stack!r}; give 64 KiB to 1.5 MiB")
        self._process_limit = _process_limit(process_limit)
        if memory_limit is None and self._process_limit is not None:
            memory_limit = self._process_limit * 9 // 10
        options = ffi.new(
            "sh_host_options *",
            {
                "memory_limit": _limit(memory_limit),
                "max_regions": _within("max_guests", max_guests, 1, _MOST_GUESTS),
                "policy": policy_number(reclaim),
                "resident_per_slot": parse_bytes(warm_guest),
                "resident_total": parse_bytes(warm_total),
                "decay_ns": round(parse_seconds(warm_idle) * 1e9),
                "wasm_stack": stack_bytes,
                "optimize": optimize,
                "workers": _within("workers", workers, 0, _MOST_WORKERS),
                "background": background,
                "realtime": _within("realtime", realtime, 0, _MOST_REALTIME),
                "numa_bind": numa_bind,
                "handles": _within("handles", handles, 0, _MOST_HANDLES),
                "handle_bytes": _limit(handle_memory),
            },
        )
        memory_of_each = None if tenant_memory is None else parse_bytes(tenant_memory)
        kept_code = parse_bytes(cache_limit) if cache else None
        self.loader = Loader(optimize=optimize, cache_limit=kept_code)
        """Not for users, who have `load` and `plugins`."""
        self._handle_memory = None if handle_memory is None else parse_bytes(handle_memory)
        self.handles_and_gc: tuple[HandleHeap, Collector] | None = None
        """Made when first needed. Not for users, who have `handles` and `gc`."""
        self.made_pressure: Pressure | None = None
        """Likewise; users have `pressure`."""
        self._events: Events | None = None  # made when first needed
        self._functions: dict[tuple[str, str], HostFunction] = {}
        self._lock = threading.Lock()
        self.watcher: Watcher | None = None
        """Who is told of what the host makes. Not for users: see observe/traces.py."""
        self.on_close: list[Callable[[], object]] = []
        """Called once, first of all, when it closes. Not for users."""
        self._closed = True  # until there is something to close
        self._pid = os.getpid()
        self.mapped_guests = MappedGuests()
        """Not for users."""
        self.native = lib.sh_host_new(options)
        if not self.native:
            raise failure()
        self.native = ffi.gc(self.native, lib.sh_host_release)
        self._tenants = Tenants(self.native, memory_of_each)
        self._closed = False
        _hosts.add(self)
        if self._process_limit is not None:
            self.pressure.start()

    # ---- host functions, modules, tenants ----

    def function(
        self, module: str, name: str, signature: str | None = None
    ) -> Callable[[_Function], _Function]:
        """Define a host function: `@host.function("env", "log")`. Define before load.

        Its types come from its annotations (`int`, `float`, `bytes` for v128, a tuple for several
        results, `Handle[T]` for objects), or from `signature="(i32, i64) -> f64"`. A parameter
        annotated `sandhost.Guest` receives the calling guest. What it raises comes out of the guest's
        call. It must not switch greenlets. A coroutine function (`async def`) can be reached by
        `guest.call_async` only.

        Raises:
            ConfigError: the types cannot be told.
        """
        from .hostcalls import HostFunction

        def define(function: _Function) -> _Function:
            self._functions[module, name] = HostFunction(module, name, function, signature)
            return function

        return define

    def load(
        self,
        source: str | os.PathLike[str] | bytes,
        *,
        fuel: bool = False,
        name: str | None = None,
    ) -> Plugin:
        """Load a module from a path or bytes, wasm or wat text: compile it, or take it from the cache.

        Args:
            fuel: compile with instruction counters, for `Limits(fuel=...)`.
            name: how errors and statistics call it; else its path or its own name.

        Raises:
            ModuleError: it cannot be read, is not valid, uses what sandhost does not load, or imports
                what the host does not define.
        """
        self._check_open()
        plugin = self.loader.load(self, source, dict(self._functions), fuel=fuel, name=name)
        if self.watcher is not None:
            self.watcher.loaded(plugin)
        return plugin

    def plugins(self) -> list[Plugin]:
        """List the plugins that were loaded and are in use."""
        return self.loader.all()

    def load_snapshot(
        self, path: str | os.PathLike[str], *, module: Plugin | None = None
    ) -> Snapshot:
        """Load what `Snapshot.save` has written: its header is read, its pages are mapped.

        Args:
            module: what it is a snapshot of; None: whichever of the loaded plugins fits.

        Raises:
            SnapshotError: the file is no snapshot, was cut off or altered, was made by another
                version, or belongs to a module that is not loaded. Altered pages are found at the
                first spawn.
            OSError: it cannot be read.
        """
        from .snapshot import Snapshot
        from .snapshot_file import PageCheck, load, read_header

        self._check_open()
        name = os.fspath(path)
        with open(path, "rb") as file:
            header = read_header(file, name)
            plugin = module or self.loader.find(header.module_digest)
            if plugin is None:
                raise SnapshotError(
                    f"{name} is a snapshot of {header.module_name}, which is not loaded: load the "
                    "module first, the same one"
                )
            native = load(file, name, header, plugin)
            try:
                return Snapshot(plugin, native, header.reseed, PageCheck(file, name, header))
            except ConfigError as error:
                raise SnapshotError(f"{name} does not fit its module: {error}") from error

    def tenant(
        self,
        name: str,
        memory_limit: int | str | None = None,
        *,
        handles: int | None = None,
        handle_memory: int | str | None = None,
        guests: int | None = None,
        spawns_per_s: float | None = None,
        cpus: float | None = None,
        weight: float | None = None,
    ) -> Tenant:
        """Return the tenant of this name; the first call makes it, with its quotas. None: no quota.

        `Tenant.set_quotas` changes them later.

        Args:
            memory_limit: bytes that its guests' memories may have committed.
            handles: handles that its guests may hold at once.
            handle_memory: bytes that the objects behind those may count for.
            guests: guests alive at once.
            spawns_per_s: guests that it may start in a second, on average; what was not used of the
                last second may be used at once.
            cpus: share of one processor that its guests' calls may use, on average over a second;
                above it, calls end with `QuotaExceeded`. Costs each call a microsecond.
            weight: its part of the memory when the process is short of it, beside the other tenants'
                weights; 1 unless given. Who is furthest above its part loses guests first.

        Raises:
            ConfigError: it exists with other quotas, or a value cannot be meant.
        """
        if not isinstance(name, str):
            raise ConfigError(f"a tenant's name is a text, not {name!r:.200}")
        wanted = _NO_QUOTAS
        given = (memory_limit, handles, handle_memory, guests, spawns_per_s, cpus, weight)
        if any(value is not None for value in given):
            wanted = Quotas(*given)
        if name not in self._tenants:
            self._check_open()
        return self._tenants.get(name, wanted)

    def tenants(self) -> list[Tenant]:
        """List the tenants that were ever named, in that order."""
        return self._tenants.all()

    # ---- handles ----

    @property
    def handles(self) -> HandleHeap:
        """The handle heap: objects of the application that guests hold by number."""
        return (self.handles_and_gc or self._make_heap())[0]

    @property
    def gc(self) -> Collector:
        """The collector of the handle heap: when it runs, and how hard."""
        return (self.handles_and_gc or self._make_heap())[1]

    def _make_heap(self) -> tuple[HandleHeap, Collector]:
        from .gc.collector import Collector
        from .gc.pacer import Pacer
        from .heap import HandleHeap

        self._check_open()
        with self._lock:
            if self.handles_and_gc is None:
                handles = HandleHeap(self.native)
                cores = len(os.sched_getaffinity(0))
                collector = Collector(
                    handles, Pacer(cores=cores, memory_limit_bytes=self._handle_memory)
                )
                self.handles_and_gc = (handles, collector)
                if self.watcher is not None:
                    self.watcher.collects(collector)
                collector.start()
            return self.handles_and_gc

    # ---- memory ----

    @property
    def pressure(self) -> Pressure:
        """What watches the process's memory, and acts when that gets short.

        It has begun to if the host was given a `process_limit`; else `host.pressure.start()` has it
        watch what limits there are: the cgroup's, that of handles, and how long the machine stalls.
        """
        return self.made_pressure or self._make_pressure()

    def _make_pressure(self) -> Pressure:
        from .govern.pressure import Pressure
        from .governed import GovernedHost

        self._check_open()
        with self._lock:
            if self.made_pressure is None:
                self.made_pressure = Pressure(GovernedHost(self), self._process_limit)
            return self.made_pressure

    def release_os_memory(self) -> Released:
        """Give all memory that is free back to the operating system; return what went back.

        Free slots of guests, and what the C library keeps. Nothing is collected: see `gc.collect`.
        """
        from .governed import release_os_memory

        return release_os_memory(self)

    # ---- events ----

    @property
    def events(self) -> Events:
        """What happens to guests, memory and handles, for whoever listens: nobody, to begin with."""
        if self._events is None:
            from .events import Events

            with self._lock:
                if self._events is None:
                    self._events = Events(self.native, *self.names())
        return self._events

    # ---- figures ----

    def stats(self) -> MemStats:
        """Return a snapshot of what the host holds and has done."""
        return read_stats(self.native)

    def guests(self) -> list[GuestRow]:
        """List the live guests, those of other threads too, without stopping any."""
        return read_guests(self.native, *self.names())

    def slots(self, *, measure: bool = True) -> list[SlotRow]:
        """List the slots of guests' memories that were used at least once, without stopping any.

        Args:
            measure: ask the kernel what is resident: some microseconds a slot, with the lock of
                Python let go.
        """
        return read_slots(self.native, *self.names(), measure=measure)

    def names(self) -> tuple[dict[int, str], dict[int, str]]:
        """Return the names of plugins and tenants by their ids, which grow with them. Not for users."""
        return self.loader.names, self._tenants.names

    def workers(self) -> WorkerStats:
        """Return what the threads do that run calls of `call_async` which compute."""
        return read_workers(self.native)

    def node_stats(self) -> tuple[NodeStats, ...]:
        """Return what the guests' memories hold on each NUMA node, and whether their pages lie there.

        Walks the page tables of all guests: for a look now and then, not for each request.
        """
        self._check_open()
        return read_nodes(self.native)

    def latency(self, operation: str) -> Latency:
        """Return how long each "spawn", "call" or "close" took since the host was made."""
        operations = {"spawn": lib.SH_OP_SPAWN, "call": lib.SH_OP_CALL, "close": lib.SH_OP_CLOSE}
        if operation not in operations:
            raise ConfigError(f"operation is {operation!r}; choose one of {', '.join(operations)}")
        return read_latency(self.native, operations[operation])

    def trim(self) -> int:
        """Give the resident memory of all free slots back to the operating system; return bytes."""
        return int(lib.sh_host_trim(self.native, 0))

    # ---- the end ----

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise SandhostError("this process was forked from the one that made the host")
        if self._closed:
            raise GuestClosed("the host is closed")

    def close(self) -> None:
        """End every guest, cancelling calls that other threads are in. Idempotent.

        Raises:
            GuestBusy: a call could not be ended (it is inside a host function), or views of a
                guest's memory are alive. The host takes no new guests; call again.
        """
        if os.getpid() != self._pid:
            return  # a forked child has no guests
        self._closed = True
        while self.on_close:
            self.on_close.pop()()
        if self.made_pressure is not None:
            self.made_pressure.close()
        if self.handles_and_gc is not None:
            self.handles_and_gc[1].close()
        for _ in range(2):  # a guest that the first round has cancelled is ended in the second
            self.mapped_guests.end()
            if not lib.sh_host_close(self.native):
                if self.handles_and_gc is not None:
                    self.handles_and_gc[0].run_finalizers()
                if self._events is not None:
                    self._events.close()
                return
            error = failure()
        raise error

    def __del__(self, leaving: Callable[[], int] = lib.sh_leaving) -> None:
        if not getattr(self, "_closed", True) and not leaving():
            self.warn_if_live()

    def warn_if_live(self) -> None:
        """Warn when the host dies with guests. Not for users."""
        native = ffi.new("sh_host_stats *")
        lib.sh_host_get_stats(self.native, native)
        if native.guests_live:
            warnings.warn("a sandhost.Host with live guests was never closed", ResourceWarning)


def _process_limit(value: int | str | None) -> int | None:
    if value is None:
        return None
    if value != "cgroup":
        return parse_bytes(value)
    from .govern.cgroup import find_group

    group = find_group()
    if group is None or group.limit_bytes is None:
        raise ConfigError('process_limit is "cgroup", but no cgroup limits this process\'s memory')
    return group.limit_bytes


def _within(what: str, value: int, least: int, most: int) -> int:
    if not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(f"{what} is {value!r}; give {least} to {most}")
    return value


def _limit(value: int | str | None) -> int:
    return UNLIMITED if value is None else parse_bytes(value)


_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


def _at_exit() -> None:
    try:
        for host in list(_hosts):
            if host._events is not None:
                host._events.close()
            host.warn_if_live()
    finally:  # the warning may be an error
        lib.sh_exiting()


atexit.register(_at_exit)
