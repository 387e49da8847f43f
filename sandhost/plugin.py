"""A plugin: a module that was checked, compiled and linked once, ready to be spawned."""

from __future__ import annotations

import hashlib
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from ._ffi import address_of, ffi, lib, take_error
from .calls import Cells, Invoker, call_failure
from .errors import ConfigError
from .guest import Guest
from .hostcalls import Binding, HostFunction, bindings, spawning
from .limits import Limits
from .linking import Linked
from .lives import LONG, live
from .mapped import MappedGuests
from .modules.compiled import Compiled
from .modules.describe import ModuleInfo
from .modules.state import State
from .modules.types import FuncType
from .snapshot import Snapshot, take
from .tenants import Tenant
from .wasi import Wasi, WasiGrant

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from .aio.session import Session
    from .aio.spawn import SpawnAsync

__all__ = ["Plugin", "PluginStats"]

_DEFAULT_LIMITS = Limits()
_FRESH = _NO_TENANT = ffi.NULL


class PluginStats(NamedTuple):
    """Counters of one plugin. Calls are of guests that have ended."""

    guests_live: int
    spawns: int
    calls: int
    host_calls: int
    traps: int
    image_bytes: int
    """Initial data, shared by all guests."""


class _GivenLimits(NamedTuple):
    """Limits as C takes them."""

    source: Limits
    native: Any
    address: int

    @classmethod
    def of(cls, limits: Limits) -> _GivenLimits:
        native = ffi.new(
            "sh_limits *",
            (
                limits.memory_bytes,
                limits.deadline_ns,
                limits.fuel or 0,
                limits.table_elements,
                limits.handles,
                limits.handle_bytes,
            ),
        )
        return cls(limits, native, address_of(native))


class Plugin:
    """What `host.load()` returns. Threads may spawn from one plugin at the same time.

    Who watches a plugin puts a `guest_class`, `spawn_from` and `call_from` of its own over those of
    the class, into the instance; so one that nobody watches pays nothing.
    """

    guest_class = Guest
    """What a spawn makes. Not for users."""

    def __init__(
        self,
        host: Any,
        name: str,
        compiled: Compiled,
        functions: Mapping[tuple[str, str], HostFunction],
    ) -> None:
        rewritten = compiled.rewritten
        self._host = host
        self.name = name
        """Where it was loaded from, or the module's own name."""
        self.info: ModuleInfo = rewritten.info
        """The module as its author wrote it."""
        self.state: State = rewritten.state
        self._code_digest = compiled.digest
        self._module_digest: str | None = None
        self._snapshots_refused = (
            "a data segment of the module is written at each start, over what a snapshot holds"
            if rewritten.keeps_active_data
            else None
        )
        self.uses_wasi = self.info.has_wasi
        self.host_guests: MappedGuests = host.mapped_guests
        self._linked = Linked(host, name, compiled, functions)
        self._native = self._linked.native
        self.id = int(lib.sh_plugin_id(self._native))
        """What C calls it, among those of its host; probes and events too."""
        self._calls_back, self._exports = self._linked.calls_back, self._linked.exports
        self._imports_nothing = not any(wanted.kind == "func" for wanted in self.info.imports)
        self._invokers, self._lives = self._exports.invokers, self._exports.lives
        self.functions: Mapping[str, FuncType] = self._exports.types
        """Those that it exports, by name."""
        self._here: dict[str, Invoker] = {}
        self._no_limits_given = self._last_limits = _GivenLimits.of(_DEFAULT_LIMITS)
        self._no_wasi_given = WasiGrant(Wasi()) if self.uses_wasi else None
        self._last_grant = self._no_wasi_given

    def __repr__(self) -> str:
        return f"<sandhost.Plugin {self.name!r}>"

    # ---- spawn ----

    def spawn(
        self,
        *,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        wasi: Wasi | None = None,
    ) -> Guest:
        """Start a guest: a fresh instance in regions of its own.

        Raises:
            OutOfMemory: its first memory exceeds the guest's, the tenant's or the host's limit.
            RegionFullError: no region is free.
            GuestTrap, DeadlineExceeded, …: what its start function did; see `Guest.call`.
            ConfigError: WASI is given to a plugin that imports none, or fuel to one without.
        """
        return self.spawn_from(_FRESH, limits, tenant, wasi)

    def spawn_async(
        self,
        *,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        wasi: Wasi | None = None,
    ) -> SpawnAsync:
        """Start a guest from a task: `async with plugin.spawn_async(...) as guest`.

        Its start function may wait. At the end of the block, calls that other tasks have made of it
        are ended, then the guest is closed. `await plugin.spawn_async(...)` returns the guest.

        Raises:
            Exception: as `spawn`.
        """
        from .aio.spawn import SpawnAsync

        return SpawnAsync(
            lambda: self.spawn_from(_FRESH, limits, tenant, wasi, started=False),
            starts=self.state.start is not None,
        )

    def session(
        self,
        *,
        argv: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        dirs: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        buffer: int | str = "64 KiB",
    ) -> Session:
        """Run a command, its `_start`, beside the task that talks to it: `async with` the result.

        Args:
            buffer: bytes that each of its streams holds before the writer waits.

        Raises:
            Exception: as `spawn`, at the start of the block; what ended the command, at its end.
        """
        from .aio.session import Session

        given = Wasi(argv=argv, env=env or {}, dirs=dirs or {})
        return Session(self, given, limits, tenant, buffer)

    def call(
        self,
        name: str,
        *arguments: Any,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
    ) -> Any:
        """Spawn a guest, call one of its functions, and close it: one guest a request.

        The same as `with plugin.spawn(...) as guest: guest.call(...)`, in half the time where the
        plugin uses no WASI and no host function asks for the guest.

        Raises:
            Exception: as `spawn` and `Guest.call`.
        """
        return self.call_from(_FRESH, name, arguments, limits, tenant)

    def call_from(
        self,
        origin: Any,
        name: str,
        arguments: tuple[Any, ...],
        limits: Limits | None,
        tenant: str | Tenant | None,
    ) -> Any:
        """Spawn from a `sh_snapshot *` or NULL, call, close. Not for users."""
        if self._calls_back or self.uses_wasi:
            with self.spawn_from(origin, limits, tenant, None) as guest:
                return guest.call(name, *arguments)
        invoker = self._lives[name]
        life = (self._native, origin, self._owner(tenant), self._limits(limits))
        return invoker(life, *arguments)

    def call_async(
        self,
        name: str,
        *arguments: Any,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Spawn a guest, call one of its functions, and close it, from a task: one guest a request.

        The same as `async with plugin.spawn_async(...) as guest: await guest.call_async(...)`, in a
        third of the time where the plugin imports no function and its calls are short. A call that
        does not turn out so is ended within some milliseconds, and made once more beside the loop.

        Raises:
            Exception: as `spawn` and `Guest.call_async`.
        """
        return live(self, _FRESH, name, arguments, limits, tenant, self.spawn_async)

    def call_at_once(
        self, name: str, arguments: tuple[Any, ...], limits: Limits | None, tenant: Tenant | None
    ) -> Any:
        """The first half of `call_async`, for who has no task yet: a result, or `lives.LONG`. Not for users."""
        return self.call_here(_FRESH, name, arguments, limits, tenant)

    def call_here(
        self,
        origin: Any,
        name: str,
        arguments: tuple[Any, ...],
        limits: Limits | None,
        tenant: str | Tenant | None,
    ) -> Any:
        """Spawn from a `sh_snapshot *` or NULL, call, close, on an event loop. Not for users.

        Returns:
            The results; `lives.LONG`: nothing has been done, and it is to be done on a fiber.
        """
        starts = self.state.start is not None and not origin
        watched = "spawn_from" in self.__dict__  # whoever watches sees each step
        if starts or watched or not self._imports_nothing:
            return LONG
        here = self._here.get(name) or self._make_here(name)
        owner = 0 if tenant is None else self._tenant(tenant).address
        given = self._given(limits)  # held meanwhile, as `origin` is
        try:
            return here(arguments, address_of(origin) if origin else 0, owner, given.address)
        except (TypeError, ValueError, OverflowError):
            self.cells(name).pack(arguments)  # says by name which argument it is, and of what
            raise

    def _make_here(self, name: str) -> Invoker:
        cells = self.cells(name)
        made: dict[str, Invoker] = {}
        held = (cells.ended, LONG, made)
        pointers = [ffi.cast("void *", id(each)) for each in held]
        if lib.sh_python_here(self._native, cells.index, *pointers):
            raise call_failure()
        self._here[name] = made["here"]
        return self._here[name]

    def cells(self, name: str) -> Cells:
        """Return what a call on a fiber packs and unpacks with. Not for users."""
        return self._exports.cells[name]

    def _limits(self, limits: Limits | None) -> Any:
        """Return what C takes."""
        return self._given(limits).native

    def _given(self, limits: Limits | None) -> _GivenLimits:
        """Return what C takes; usually of the same object each time."""
        if limits is None:
            return self._no_limits_given
        last = self._last_limits  # one object, since other threads spawn as well
        if last.source is not limits:
            last = self._last_limits = _GivenLimits.of(limits)
        return last

    def _owner(self, tenant: str | Tenant | None) -> Any:
        return _NO_TENANT if tenant is None else self._tenant(tenant).native

    def _tenant(self, tenant: str | Tenant) -> Tenant:
        return tenant if isinstance(tenant, Tenant) else self._host.tenant(tenant)

    def spawn_from(
        self,
        origin: Any,
        limits: Limits | None,
        tenant: str | Tenant | None,
        wasi: Wasi | None,
        *,
        started: bool = True,
    ) -> Guest:
        """Start a guest from a `sh_snapshot *`, or afresh from NULL. Not for users.

        Args:
            started: False leaves its start function to be called.
        """
        spawn = lib.sh_spawn if started else lib.sh_spawn_unstarted
        native_limits = self._limits(limits)
        owner = self._owner(tenant)
        grant = self._no_wasi_given if wasi is None else self._grant(wasi)
        if self._calls_back or (grant is not None and grant.streams is not None):
            return self._spawn_bound(spawn, origin, owner, native_limits, grant)
        native_wasi = ffi.NULL if grant is None else grant.native
        # The object first: what is spawned is not lost when Python's stack ends here.
        guest = self.guest_class(self, 0, self._invokers)
        guest._id = spawn(self._native, origin, owner, native_limits, native_wasi)
        if not guest._id:
            raise call_failure()
        if grant is not None:
            self.host_guests.add(guest)  # whose output outlives it, whoever ends it
        return guest

    def _grant(self, wasi: Wasi) -> WasiGrant:
        """Return what C takes; usually the same object each time."""
        grant = self._last_grant
        if grant is None:
            raise ConfigError(f"{self.name} imports nothing of WASI; spawn it without wasi=")
        if grant.source is not wasi:
            grant = self._last_grant = WasiGrant(wasi)
        return grant

    def _spawn_bound(
        self,
        spawn: Callable[..., int],
        origin: Any,
        owner: Any,
        limits: Any,
        grant: WasiGrant | None,
    ) -> Guest:
        """Spawn a guest whose callbacks must find it."""
        guest = self.guest_class(self, 0, self._invokers)
        streams = () if grant is None else grant.streams or ()
        binding = Binding(weakref.ref(guest), streams)
        outer = getattr(spawning, "binding", None)  # a start function may call a host that spawns
        spawning.binding = binding
        try:
            native_wasi = ffi.NULL if grant is None else grant.native
            guest_id = spawn(self._native, origin, owner, limits, native_wasi)
        finally:
            spawning.binding = outer
        seen_id, guest._id = guest._id, guest_id
        if not guest_id:
            reported = take_error()
            bindings.pop(seen_id, None)
            guest.abandon()
            raise call_failure(reported)
        if self.uses_wasi:
            self.host_guests.add(guest)
        bindings[guest_id] = binding
        return guest

    # ---- snapshots ----

    def warm(
        self,
        init: str | None = None,
        args: Sequence[Any] = (),
        *,
        limits: Limits | None = None,
        tenant: str | Tenant | None = None,
        wasi: Wasi | None = None,
        save: str | os.PathLike[str] | None = None,
        reseed: str | None = None,
    ) -> Snapshot:
        """Spawn a guest, let it initialize itself, and return a snapshot of it.

        A WASI reactor's `_initialize` runs first.

        Args:
            init: an exported function to call, with `args`.
            save: also write the snapshot to this file.
            reseed: as for `Guest.snapshot`.

        Raises:
            Exception: as `spawn`, `Guest.call`, `Guest.snapshot` and `Snapshot.save`.
        """
        with self.spawn(limits=limits, tenant=tenant, wasi=wasi) as guest:
            if init != "_initialize" and self.info.function("_initialize") is not None:
                guest.call("_initialize")
            if init is not None:
                guest.call(init, *args)
            snapshot = guest.snapshot(reseed=reseed)
        if save is not None:
            snapshot.save(save)
        return snapshot

    def snapshot_of(self, guest_id: int, reseed: str | None) -> Snapshot:
        """Capture a guest. Not for users: see `Guest.snapshot`."""
        if self._snapshots_refused:
            raise ConfigError(self._snapshots_refused)
        return Snapshot(self, take(guest_id), reseed)

    @property
    def native(self) -> Any:
        """The `sh_plugin *`. Not for users."""
        return self._native

    def image(self, index: int) -> memoryview:
        """Return what a memory starts with, up to its last page that is not empty. Not for users."""
        length = ffi.new("uint64_t *")
        data = lib.sh_plugin_image(self._native, index, length)
        return memoryview(ffi.buffer(data, length[0])) if length[0] else memoryview(b"")

    def module_digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the module's code and data as sandhost runs them.

        What snapshots are bound to. The first time it reads all initial data.
        """
        if self._module_digest is None:
            self._module_digest = self._digest_module()
        return self._module_digest

    def _digest_module(self) -> str:
        digest = hashlib.sha256(self._code_digest)
        for index in range(len(self.info.memories)):
            image = self.image(index)
            digest.update(len(image).to_bytes(8, "little"))
            digest.update(image)
        return digest.hexdigest()

    def stats(self) -> PluginStats:
        """Return the plugin's counters."""
        native = ffi.new("sh_plugin_stats *")
        lib.sh_plugin_get_stats(self._native, native)
        return PluginStats(
            native.guests_live,
            native.spawns,
            native.calls,
            native.host_calls,
            native.traps,
            native.image_bytes,
        )
